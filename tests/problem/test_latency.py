"""What units take: figures from a clock that is given in, and once, without a judgement, from a real one."""

import copy
import dataclasses
import json
import os
import re
import time

import numpy as np
import pytest
import torch

from das_gym.models.base import no_mark
from das_gym.problem import latency
from das_gym.problem.latency import UnitLatencies, UnitTimer, make_timed_forward, measure_units, unit_latencies

KEPT, SKIPPED, BARE, BASE = [3.0, 5.0, 7.0], [0.5, 0.25, 0.0], [2.0, 4.0, 6.0], 10.0


class Machine:
    """A model on a clock: how long each part takes is known."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0
        self.interruption = 0.0  # milliseconds in a forward with marks, outside of units

    def clock(self) -> float:
        return self.now / 1000

    def run(self, kept: list[float], mask: np.ndarray, mark) -> None:
        self.now += BASE / 2 + (0.0 if mark is no_mark else self.interruption)
        self.runs += 1
        for index, skipped in enumerate(mask):
            mark(index, None)
            self.now += SKIPPED[index] if skipped else kept[index]
            mark(index, None)
        self.now += BASE / 2

    def timer(self) -> UnitTimer:
        timed = (lambda mask, mark: self.run(KEPT, mask, mark), lambda mask, mark: self.run(BARE, mask, mark))
        return UnitTimer(*timed, 3, torch.device("cpu"), self.clock, self.clock)


def test_measure_units_distinguishes_parts():
    found = measure_units(Machine().timer(), rounds=(4, 4))
    np.testing.assert_allclose(found.kept, KEPT)
    np.testing.assert_allclose(found.skipped, SKIPPED, atol=1e-12)
    assert (found.base, found.full) == (pytest.approx(BASE), pytest.approx(BASE + sum(BARE)))
    masks = np.array([[0, 0, 0], [0, 1, 1]], dtype=bool)
    np.testing.assert_allclose(found.cost.amounts(masks), [25.0, 13.25])
    np.testing.assert_allclose(found.cost.saved(masks), [1 - 25 / 22, 1 - 13.25 / 22])


def test_measure_units_stops_after_its_time():
    machine = Machine()
    measure_units(machine.timer(), rounds=(3, 50), seconds=0.0, warm_up=1)
    assert machine.runs == 5 * (3 + 1)


def test_measure_units_compares_the_parts_with_whole_forwards():
    machine = Machine()
    assert measure_units(machine.timer(), rounds=(3, 3)).error == pytest.approx(0)
    machine.interruption = 5.0
    assert measure_units(machine.timer(), rounds=(3, 3)).error == pytest.approx(5.0 / (BASE + sum(KEPT)))


def test_times_on_a_gpu_are_those_of_its_own_queue(monkeypatch):
    """By default torch means the first GPU."""
    seen = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream=None) -> None:
            seen.append(stream)

        def elapsed_time(self, other) -> float:
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: seen.append(str(device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: str(device))
    machine = Machine()
    timer = UnitTimer(lambda mask, mark: machine.run(KEPT, mask, mark), None, 3, torch.device("cuda:1"))
    measure_units(timer, rounds=(1, 1), warm_up=0)
    assert set(seen) == {"cuda:1"}


@torch.no_grad()
def test_served_marks_each_unit(small_problem):
    vlp, task, examples = small_problem.vlp, small_problem.task, small_problem.splits.reward[:2]
    mask, marked = np.array([0, 1, 0, 0, 1, 0], dtype=bool), []
    logits = make_timed_forward(vlp, small_problem.head, task, examples)(mask, lambda index, hidden: marked.append(index))
    torch.testing.assert_close(logits, small_problem.head(vlp.make_forward(task.processor, task.pairs(examples))(mask)))
    assert marked == [index for stage in vlp.stages for index in stage for _ in range(2)]
    assert "run_layer" not in vars(vlp)


@torch.no_grad()
def test_without_adapters_shares_weights(small_problem):
    bare = latency.without_adapters_sharing(small_problem.vlp)
    own = {parameter.data_ptr() for parameter in small_problem.vlp.parameters()}
    assert {parameter.data_ptr() for parameter in bare.parameters()} < own
    assert sum(p.numel() for p in bare.parameters()) == sum(
        p.numel() for name, p in small_problem.vlp.named_parameters() if "_adapter" not in name or "skip_adapter" in name
    )
    assert latency.without_adapters_sharing(bare) is None


def in_new_process(monkeypatch):
    monkeypatch.setattr(latency, "MEASURED", {})
    monkeypatch.setattr(latency, "EARLIER", {})


def test_latency_is_measured_once(small_problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(measure_units, "__defaults__", ((2, 2), 0.0, 1))
    monkeypatch.setattr(latency, "MAX_RELATIVE_ERROR", np.inf)
    found = unit_latencies(small_problem)
    assert min(found.kept) > 0
    assert found.base > 0
    (path,) = (tmp_path / "latency").glob("*.json")
    assert json.loads(path.read_text())["costs"]["latency_saved"] == found.cost.as_dict()
    monkeypatch.setattr(latency, "measure_units", lambda timer: pytest.fail("measured again"))
    assert unit_latencies(small_problem) == found
    assert not capsys.readouterr().err  # measured by this process
    in_new_process(monkeypatch)
    os.utime(path, (0, time.time() + 3 * 86400))  # the clock was set back since
    for _ in range(2):
        assert unit_latencies(small_problem) == found
    assert re.fullmatch(r"latency: measured on 2.*latency_again=True.*\n", capsys.readouterr().err)  # one line
    again = copy.copy(small_problem)
    again.scoring = dataclasses.replace(small_problem.scoring, latency_again=True)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        unit_latencies(again)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        unit_latencies(small_problem, batch=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            unit_latencies(small_problem)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="`latency_batch`"):
        unit_latencies(small_problem, 0)


def test_doubtful_latency_is_said_and_measured_again(small_problem, tmp_path, monkeypatch):
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    doubtful = UnitLatencies(9.0, 1.0, (2.0,) * 6, (0.0,) * 6, error=0.5)
    monkeypatch.setattr(latency, "measure_units", lambda timer: doubtful)
    with pytest.warns(UserWarning, match="doubtful.* 50%"):
        unit_latencies(small_problem)
    monkeypatch.setattr(latency, "measure_units", lambda timer: pytest.fail("measured again"))
    assert unit_latencies(small_problem).kept == doubtful.kept
    (path,) = (tmp_path / "latency").glob("*.json")
    os.utime(path, (0, time.time() + 86400))
    in_new_process(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        unit_latencies(small_problem)


@pytest.mark.parametrize("content", [b"[1]", b'{"latencies": {"full": 1}}', None], ids=["list", "incomplete", "no folder"])
def test_unusable_cache_is_measured_again(small_problem, tmp_path, monkeypatch, content):
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(latency, "measure_units", lambda timer: UnitLatencies(9.0, 1.0, (2.0,) * 6, (0.0,) * 6))
    if content is None:
        (tmp_path / "latency").write_text("a file instead of the folder")
        assert unit_latencies(small_problem).full == 9.0
        return
    found = unit_latencies(small_problem)
    (path,) = (tmp_path / "latency").glob("*.json")
    path.write_bytes(content)
    in_new_process(monkeypatch)
    assert unit_latencies(small_problem) == found
    assert json.loads(path.read_text())["latencies"]["full"] == 9.0
