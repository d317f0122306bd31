"""MLPs that are refitted before removed layers."""

from typing import Any

import numpy as np
import pytest
import torch

from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.refitting import last_linear, refit_before_removed
from das_gym.models.transformers.stack import first_output
from tests.models.transformers.conftest import Driven, copied
from tests.models.transformers.test_linear_skips import states_of

MASK = np.array([True, False, True, True])


def refitted(model: Driven, mask: np.ndarray) -> Any:
    """Return a pruned copy with refitted MLPs, and the fits."""
    smaller = pruned_copy(model.vlm, mask)
    return smaller, refit_before_removed(model.vlm, smaller, mask, states_of(model, batches=6))


@torch.no_grad()
def test_refit_adds_a_ridge_regression_of_what_is_lacking(driven):
    model = copied(driven("llama"))
    original = last_linear(model.vlm.stack.layers[1]).weight.clone()
    smaller, (fit,) = refitted(model, MASK)  # one run has a kept layer before it: layers 2 and 3 after layer 1
    assert fit.unit == "decoder.1"
    activations, found, wanted = [], [], []
    alone = pruned_copy(model.vlm, MASK)
    hooks = [
        last_linear(alone.stack.layers[0]).register_forward_pre_hook(lambda m, args: activations.append(args[0][0])),
        alone.stack.layers[0].register_forward_hook(lambda m, args, output: found.append(first_output(output)[0])),
        model.vlm.stack.layers[3].register_forward_hook(lambda m, args, output: wanted.append(first_output(output)[0])),
    ]
    for each in (Driven(alone, model.processor), model):
        each.plain(model.prompts())
    for hook in hooks:
        hook.remove()
    read, lacking = torch.cat(activations), torch.cat(wanted) - torch.cat(found)
    penalty = fit.strength * float((read**2).sum(0).mean()) * torch.eye(read.shape[1], dtype=read.dtype)
    weight = torch.linalg.solve(read.T @ read + penalty, read.T @ lacking)
    torch.testing.assert_close(last_linear(smaller.stack.layers[0]).weight - original, weight.T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(last_linear(model.vlm.stack.layers[1]).weight, original)  # the full model is as before


def test_refit_brings_hidden_states_closer_to_the_full_model(driven):
    model = copied(driven("llama"))
    mask = np.array([False, True, False, True])
    full = model.logits(model.prompts(), ~mask & mask)
    smaller, fits = refitted(model, mask)
    assert [fit.unit for fit in fits] == ["decoder.0", "decoder.2"]
    repaired = Driven(smaller, model.processor).logits(model.prompts(), np.zeros(2))
    deleted = model.logits(model.prompts(), mask)
    assert (repaired - full).pow(2).mean() < 0.5 * (deleted - full).pow(2).mean()


def test_sublayers_are_refused(driven):
    model = copied(driven("llama", "sublayers"))
    mask = np.arange(8) == 2
    with pytest.raises(ValueError, match="recover=refit"):
        refit_before_removed(model.vlm, pruned_copy(model.vlm, mask), mask, states_of(model))
