"""Scoring on another device keeps all tensors there: tensors of the CPU would raise there, as on CUDA."""

import numpy as np
import pytest
import torch

from das_gym.models import inputs
from das_gym.models.macs import MacCounter
from das_gym.problem.costs import count_costs
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import STATISTICS, compute_statistics
from tests.engine.conftest import World
from tests.fake_device import DEVICE, FakeDeviceTensor, fake_device

pytestmark = pytest.mark.slow
MASKS = np.eye(12, dtype=bool)[[0, 3, 11]]


def test_device_rejects_what_cuda_rejects():
    here = torch.arange(3.0)
    with fake_device():
        there = here.to(DEVICE)
        assert there.device == torch.device(DEVICE)
        assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]
        assert there[torch.tensor([2, 0])].tolist() == [2.0, 0.0]
        assert torch.zeros(2, device=DEVICE).add_(there[0]).cpu().tolist() == [0.0, 0.0]
        for wrong in (lambda: there + here, lambda: there.index_select(0, torch.tensor([0])), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="of tensors on cpu"):
                wrong()
        weight = torch.nn.Linear(3, 1).to(DEVICE).weight
        (there @ weight[0]).backward()
        assert isinstance(weight.grad, FakeDeviceTensor)


@pytest.fixture(params=["float64", "no float64"])
def with_or_without_float64(request, monkeypatch) -> None:
    """`mps` has none."""
    if request.param == "no float64":
        monkeypatch.setattr(inputs, "NO_FLOAT64", ["mps", "lazy"])


@pytest.mark.usefixtures("with_or_without_float64")
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_scores_are_those_of_the_cpu(new_world, model):
    world = new_world(model)
    wanted = world.evaluator(trunk_bytes=2**20).evaluate(MASKS, world.examples, divergences=True)
    with fake_device():
        world.vlp.to(DEVICE)
        world.head.to(DEVICE)
        found = world.evaluator(trunk_bytes=2**20).evaluate(MASKS, world.examples, divergences=True)
    np.testing.assert_allclose(found.losses, wanted.losses, atol=1e-6)
    np.testing.assert_allclose(found.divergences, wanted.divergences, atol=1e-6)


@pytest.mark.usefixtures("with_or_without_float64")
@pytest.mark.parametrize("model", ["ViLT"])
def test_statistics_run_on_the_device(new_world, model):
    def computed(world: World) -> np.ndarray:
        evaluator, examples = world.evaluator(), world.examples
        sample = world.vlp.cost_example(world.task.processor, world.task.pairs(examples), MacCounter(world.vlp))
        costs = count_costs(world.vlp, sample, world.head)
        inputs = StatisticInputs(evaluator, costs, examples, measure_activity(evaluator, examples))
        return compute_statistics(tuple(STATISTICS.values()), inputs)

    world = new_world(model)
    wanted = computed(world)
    with fake_device():
        world.vlp.to(DEVICE)
        world.head.to(DEVICE)
        found = computed(world)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
