import numpy as np
import pytest
import torch

from benchmarks import latency
from das_gym.problem.budget import MaskCost
from das_gym.problem.latency import UnitTimer


@pytest.mark.slow
def test_latency_is_measured_and_described():
    record = latency.measure("mini", 1, 2, 2)
    assert len(record["predicted_ms"]) == 2
    assert record["macs_saved"] == pytest.approx(0.2, abs=0.01)
    assert "2 random subnets, predicted within" in latency.describe("mini", 1, record)


def test_errors_are_those_of_the_clock():
    now = [0.0]

    def timed(mask, mark):
        now[0] += 0.001
        for index, skipped in enumerate(mask):
            mark(index, None)
            now[0] += 0.0 if skipped else 0.001 * (index + 1)
            mark(index, None)

    timer = UnitTimer(timed, None, 2, torch.device("cpu"), lambda: now[0], lambda: now[0])
    for _ in range(3):
        timer.round()
    masks = np.array([[False, True], [True, False], [True, False]])
    taken = np.array([[2.0, 6.0, 2.0, 4.0]] * 3)
    record = latency.compared(timer, taken, masks, MaskCost(100, 100, np.array([10, 40])))
    assert record["predicted_ms"] == pytest.approx([2.0, 3.0])
    assert (record["error"].median, record["largest_error"]) == pytest.approx((0.25, 0.5))
    assert (record["macs_saved"], record["measured_saved"].median, record["of_the_macs"]) == pytest.approx((0.1, 0.5, 5.0))
