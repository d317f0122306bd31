"""What fits into memory: examples of a step, prompts at a time, and a process that verifies."""

from dataclasses import replace

import psutil
import pytest
import torch
from das_gym.adapt.shrinking.checks import check_verification_memory
from das_gym.adapt.shrinking.memory import answers_at_a_time, plan_training
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.adapt.shrinking.verifying import off_gpu

from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.problem.problem import load_problem
from tests.adapt.conftest import MASK
from tests.fake_device import DEVICE, fake_device

FIXED, PLAIN, CHECKPOINTED = 100, 50, 10


@pytest.mark.parametrize(
    ("free", "micro_batch_size", "gradient_checkpointing", "expected"),
    [
        (10_000, None, None, (16, False)),
        (1_000, None, None, (16, True)),  # 100 + 16 * 50 is more than the usable 800
        (250, None, None, (8, True)),  # 10 of 16 examples fit, which is a power of two less
        (1_000, None, False, (8, False)),  # 14 fit
        (1_000, 4, None, (4, False)),
        (300, 16, True, (16, True)),  # as it was asked for: it fits, though not into the usable part
    ],
)
def test_plan_of_training(free, micro_batch_size, gradient_checkpointing, expected):
    config = RecoveryConfig(micro_batch_size=micro_batch_size, gradient_checkpointing=gradient_checkpointing)
    plan = plan_training(config, 16, FIXED, PLAIN, CHECKPOINTED, free)
    assert (plan.micro_batch_size, plan.gradient_checkpointing) == expected
    assert plan.needed == FIXED + plan.micro_batch_size * (CHECKPOINTED if plan.gradient_checkpointing else PLAIN) <= free


@pytest.mark.parametrize(
    ("free", "size", "checkpointing", "named"),
    [(105, None, None, "`dtype`"), (140, None, False, "gradient_checkpointing=True"), (250, 16, True, "`micro_batch_size`")],
)
def test_training_that_does_not_fit_is_rejected(free, size, checkpointing, named):
    config = RecoveryConfig(micro_batch_size=size, gradient_checkpointing=checkpointing)
    with pytest.raises(ValueError, match=named):
        plan_training(config, 16, FIXED, PLAIN, CHECKPOINTED, free)


def test_answers_at_a_time(problem_of):
    problem = problem_of("llava")
    prompts = problem.task.pairs(problem.task.open_ended(problem.splits.test))
    asked = problem.vlp, problem.task.processor, prompts
    tokens = max(len(problem.task.processor.encode(prompt).ids) for prompt in prompts) + 8
    of_one = tokens * 4 * (4 * 2 * 2 * 8 + 8 * 32)  # of 4 layers, keys and values of 2 heads of 8; of the hidden size 32
    for free, expected in ((0, 1), (10 * of_one, 8), (4 * of_one, 3), (2**40, 8)):
        assert answers_at_a_time(*asked, free, most=8) == expected


def test_models_leave_the_gpu_for_the_process_that_verifies(problem_of):
    plain = problem_of("llava")
    with fake_device():
        problem = load_problem(replace(plain.backbone.origin.config, device=DEVICE))
        full, smaller = problem.vlp, pruned_copy(problem.vlp, MASK)
        with off_gpu([full, smaller]):
            tensors = [*full.parameters(), *full.buffers(), *smaller.parameters(), *smaller.buffers()]
            assert {str(tensor.device) for tensor in tensors} == {"cpu"}
        assert {str(p.device) for vlm in (full, smaller) for p in vlm.parameters()} == {DEVICE}
        mine, its = ({id(p) for p in vlm.parameters()} for vlm in (smaller, full))
        assert mine <= its  # they still share all weights
        assert torch.equal(smaller.model.lm_head.weight.cpu(), plain.vlp.model.lm_head.weight)
        needed = 2 * sum(p.nbytes for p in full.parameters())
        assert psutil.virtual_memory().available > needed
        check_verification_memory(full)
