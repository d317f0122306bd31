"""The projector, trained with the adapters: its outputs are the same until it is changed."""

import copy

import numpy as np
import pytest
import torch

from das_gym.models.transformers.probing import find_tower_reads
from das_gym.models.transformers.tower import compute_in_float32
from tests.models.transformers.conftest import Driven
from tests.models.transformers.test_engine import evaluator_of, examples_by_round


def opened(model: Driven) -> Driven:
    """A copy whose projector trains."""
    other = copy.deepcopy(model)
    other.vlm.open_projector(find_tower_reads(other.vlm.capabilities, other.vlm.model, other.processor))
    other.vlm.freeze()
    other.head = other.vlm.language_head()
    return other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_projector_equals_its_own_forward(driven, name):
    model = opened(driven(name))
    vlm, prompts, mask = model.vlm, model.prompts(), np.eye(len(model.vlm.layers), dtype=bool)[1]
    before = driven(name).logits(prompts, mask)
    torch.testing.assert_close(model.logits(prompts, mask), before, atol=1e-12, rtol=1e-12)
    evaluator = evaluator_of(model, trunk_bytes=2**24)
    loss = evaluator.losses(mask[None], examples_by_round(model))
    with torch.no_grad():
        for parameter in vlm.tunable_state().values():
            parameter.mul_(1.5)
    after = model.logits(prompts, mask)
    torch.testing.assert_close(after, model.plain(prompts, mask), atol=1e-12, rtol=1e-12)
    assert float((after - before).abs().max()) > 1e-3
    assert abs(evaluator.losses(mask[None], examples_by_round(model)) - loss) > 1e-5  # nothing of it was remembered
    assert evaluator.spent.images == 2  # the tower ran once per image


def test_in_16_bits_it_computes_in_32(driven):
    linear = torch.nn.Linear(3, 3).bfloat16()
    x = torch.randn(2, 3).bfloat16()
    plain = linear(x)
    compute_in_float32(linear)
    assert linear.weight.dtype == torch.float32
    torch.testing.assert_close(linear(x), plain, atol=0.02, rtol=0.02)
    assert linear(x).dtype == torch.bfloat16
