"""Repair a model without its skipped layers in closed form, within the weights that it keeps.

The last linear map of the MLP before each run of removed layers is refitted: a ridge regression predicts, from the input of
that map, the difference between the hidden states of the full and of the shortened model after the removed layers, and is
added to its weight. The architecture stays one of transformers' own.
ReplaceMe (arXiv 2505.02819) folds a map of the MLP's outputs into the same weight.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.models.base import State
from das_gym.models.transformers.layer_removal import full_model_with_parameters
from das_gym.models.transformers.linear_skips import LinearFit, fit_ridge, stream_tokens
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import MLP_NAMES, child
from das_gym.models.transformers.units import LAYER, MLP_OUT


@torch.no_grad()
def refit_before_removed(full: VLM, smaller: VLM, mask: np.ndarray, states: Sequence[State]) -> list[LinearFit]:
    """Refit the MLPs before removed layers of a `pruned_copy`, in order; the full model, which shares weights, stays.

    `mask` is (n_units,) bool, True = removed; `states` are those before the first unit of each calibration batch, as
    `VLM.embed` returns them. Return the fits. Layers that are removed before the first kept one are not repaired.

    Raises:
        ValueError: Units are not layers, or an MLP's last map has no known name.
    """
    check_refit(full)
    masked = full_model_with_parameters(full, smaller, mask)
    kept = [place for place in range(len(full.stack.layers)) if place not in full.removed_layers(mask)]
    fits = []
    before = list(states)  # of the full model
    short = list(states)
    last: tuple[int, list[State]] | None = None  # the kept unit before a run of removed ones, and the states before it
    for index in range(len(full.layers)):
        after = [_after(full, index, state) for state in before]
        ends_run = mask[index] and (index + 1 == len(mask) or not mask[index + 1])
        if not mask[index]:
            last = index, short
            short = [_after(masked, index, state) for state in short]
        elif ends_run and last is not None:
            unit, states_before = last
            linear = last_linear(masked.stack.layers[masked.places[unit]])
            pairs = [_pair(masked, unit, linear, *each) for each in zip(states_before, after, strict=True)]
            ridge = fit_ridge(pairs, bias=linear.bias is not None, what=masked.layers[unit].name)
            refitted = _added(linear, ridge.up, ridge.bias)
            for layer in (masked.stack.layers[masked.places[unit]], smaller.stack.layers[kept.index(masked.places[unit])]):
                last_linear(layer)._parameters.update(refitted)
            short = [_after(masked, unit, state) for state in states_before]
            fits.append(LinearFit(masked.layers[unit].name, ridge.strength, ridge.explained))
        before = after
    return fits


def check_refit(full: VLM) -> None:
    """Raise a ValueError for a model that `refit_before_removed` cannot repair under any mask."""
    if any(unit.kind != LAYER for unit in full.layers) or full.tower is not None or full.capabilities.protected:
        raise ValueError(
            f"recover=refit needs all decoder layers as units: got units={full.unit_kind}, vision={full.tower is not None}, "
            f"protected layers {list(full.capabilities.protected)}. Use recover=linear, or leave `units` and `vision` out."
        )
    for layer in full.stack.layers:
        last_linear(layer)


def last_linear(layer: nn.Module) -> nn.Linear:
    """Return the last linear map of a layer's MLP; ValueError if it has no known name."""
    part: Any = child(layer, MLP_NAMES)
    linear = None if part is None else child(part, MLP_OUT)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"the MLP of a {type(layer).__name__} has no last linear map under a known name. Use recover=linear."
        )
    return linear


def _after(vlm: VLM, index: int, state: State) -> State:
    hidden = vlm.run_layer(index, state, skipped=False)
    return state.with_hidden({vlm.layers[index].stream: hidden})


def _pair(vlm: VLM, unit: int, linear: nn.Linear, state: State, wanted: State) -> tuple[Tensor, Tensor]:
    """Return what an MLP's last map reads, and wanted hidden states less the layer's output: (tokens, width) each."""
    read: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda module, args: read.append(args[0].flatten(0, -2)))
    try:
        found = _after(vlm, unit, state)
    finally:
        handle.remove()
    stream = vlm.layers[unit].stream
    lacking = stream_tokens(wanted, stream, wanted.hidden[stream]) - stream_tokens(found, stream, found.hidden[stream])
    return stream_tokens(state, stream, torch.cat(read)[None]), lacking


def _added(linear: nn.Linear, weight: Tensor, bias: Tensor) -> dict[str, nn.Parameter]:
    old: Any = linear
    new = {"weight": old.weight + weight.T.to(old.weight)}
    if old.bias is not None:
        new["bias"] = old.bias + bias.to(old.bias)
    return {name: nn.Parameter(value, requires_grad=False) for name, value in new.items()}
