"""Deleted layers: what is left says what the mask says, and the whole model stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from das_gym.adapt.shrink.measuring import loss_of

from das_gym.models.transformers import prune
from das_gym.models.transformers.layer_removal import (
    check_shared,
    check_units,
    draw_mask,
    full_with_parameters_of,
    pruned_copy,
)
from das_gym.problem.loading import Problem
from tests.adapt.shrink.conftest import MASK
from tests.models.transformers import tiny


def open_test(problem: Problem) -> list:
    return problem.task.open_ended(problem.splits.test)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_what_is_left_has_the_masks_loss_and_the_whole_model_its_own(problem_of: Callable[[str], Problem], name: str):
    problem = problem_of(name)
    full, masked = problem.evaluator.losses(np.stack((MASK & False, MASK)), problem.splits.test)
    smaller = pruned_copy(problem.vlp, MASK)
    assert loss_of(smaller, problem.task, open_test(problem), 4, "loss") == pytest.approx(masked, abs=1e-5)
    assert loss_of(problem.vlp, problem.task, open_test(problem), 4, "loss") == pytest.approx(full, abs=1e-5)
    assert abs(full - masked) > 1e-3
    whole = {p.data_ptr() for p in problem.vlp.model.parameters()}
    assert {p.data_ptr() for p in smaller.model.parameters()} < whole  # nothing is copied


@pytest.mark.slow
def test_what_is_left_may_end_in_a_layer_of_another_kind(problem_of: Callable[[str], Problem]):
    """A last layer of attention needs keys alone where nobody reads; one of convolution, which is the last now, has none."""
    problem = problem_of("lfm2_vl")
    mask = np.array([False, False, False, True])
    smaller, prompts = pruned_copy(problem.vlp, mask), problem.task.pairs(open_test(problem))
    logits = []
    for vlm, skipped in ((smaller, [False] * 3), (problem.vlp, mask)):
        seen = lambda _, items: {key: vlm.encode_images(problem.task.processor, one) for key, one in items.items()}  # noqa: B023, E731
        with torch.no_grad():
            state = vlm.gather(problem.task.processor, prompts, seen)
            logits.append(vlm.own_head()(vlm.forward_encoded(state, skipped)))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_the_whole_model_takes_the_parameters_of_what_was_trained(problem_of: Callable[[str], Problem]):
    """Masked, it is then the smaller one."""
    problem = problem_of("llava")
    smaller = pruned_copy(problem.vlp, MASK)
    for part in smaller.model.modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[key] = torch.nn.Parameter(parameter * 1.1, requires_grad=False)
    whole = full_with_parameters_of(problem.vlp, smaller, MASK)
    prompts = problem.task.pairs(open_test(problem))
    seen = lambda _, items: {key: whole.encode_images(problem.task.processor, one) for key, one in items.items()}  # noqa: E731
    with torch.no_grad():
        logits = whole.own_head()(whole.forward_encoded(whole.gather(problem.task.processor, prompts, seen), MASK))
    loss = problem.task.losses(logits, problem.task.targets(open_test(problem))).mean()
    assert float(loss) == pytest.approx(loss_of(smaller, problem.task, open_test(problem), 4, "loss"), abs=1e-5)


def test_which_layers_went_is_drawn(problem_of: Callable[[str], Problem]):
    assert problem_of("llava").vlp.removed_layers(MASK) == [1, 3]
    assert draw_mask(problem_of("llava").vlp, MASK) == "■□■□"


def test_prune_is_two_lines():
    model, _ = tiny.make("llava")
    prune(model, [0, 1, 0, 0])
    assert model.config.text_config.num_hidden_layers == len(model.get_decoder().layers) == 3


def test_layers_that_share_their_weights_are_refused():
    model, _ = tiny.make("llava")
    check_shared(model)
    layers = model.get_decoder().layers
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"decoder layers 1 and 2 share mlp.up_proj.weight: .*gets no smaller"):
        check_shared(model)


def test_a_layer_that_is_tied_to_something_else_is_refused():
    model, _ = tiny.make("llava")
    model.get_decoder().norm.weight = model.get_decoder().layers[0].input_layernorm.weight
    with pytest.raises(ValueError, match=r"norm.weight is tied to a decoder layer"):
        check_shared(model)


def test_half_layers_are_refused():
    check_units(None)
    with pytest.raises(ValueError, match="`units=sublayers`"):
        check_units("sublayers")


def test_nothing_is_left_of_das_adapters_in_a_model_that_is_cut(problem_of: Callable[[str], Problem]):
    """They would be saved with it, and their hooks would run."""
    model, (plain, _) = problem_of("llava").vlp.model, tiny.make("llava")
    assert {name for name, _ in model.named_modules()} == {name for name, _ in plain.named_modules()}
    assert not [name for name, module in model.named_modules() if module._forward_pre_hooks]
