"""Layers deleted from a model, the whole one staying as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from das_gym.models.transformers.model import IMAGE, JOINT, VLM
from das_gym.models.transformers.pruning import delete_layers, shell, what_differs
from das_gym.models.transformers.stack import find_decoder, find_tower

KEPT, GONE = "■", "□"


def drawn(vlm: VLM, mask: Sequence[bool] | np.ndarray) -> str:
    """Which decoder layers a mask deletes, in a line: `■■□■`; those of the vision tower, where they may go, before them."""
    stacks = [(JOINT, vlm.stack)] if vlm.tower is None else [(IMAGE, vlm.tower.stack), (JOINT, vlm.stack)]
    gone = {stream: vlm.gone_of(mask, stream) for stream, _ in stacks}
    return " ".join(
        "".join(GONE if place in gone[stream] else KEPT for place in range(len(each.layers))) for stream, each in stacks
    )


def cut(vlm: VLM, mask: Sequence[bool] | np.ndarray) -> VLM:
    """A model of its own without the skipped layers; it shares every parameter that is left with the whole one.

    Args:
        vlm: The whole model, frozen and without adapters; it stays as it is.
        mask: (n_layers,) bool, True = deleted.

    Raises:
        ValueError: half layers, or what is left would not load again as it is.
    """
    check_units(vlm.unit_kind)
    model = delete_layers(shell(vlm.model), vlm.gone_of(mask), vlm.gone_of(mask, IMAGE))
    difference = what_differs(model)
    if difference is not None:
        raise ValueError(f"{type(model).__name__} without these layers would not load again as it was: {difference}")
    traits = dataclasses.replace(vlm.traits, tower=None, keys_only=False)  # its last layer may be of another kind
    smaller = VLM(model, traits=traits)
    smaller.freeze()
    return smaller


def decoder_path(vlm: VLM) -> str:
    """The name of its list of decoder layers."""
    return next(name for name, module in vlm.model.named_modules() if module is vlm.stack.layers)


def check_units(units: str | None) -> None:
    """Refuse halves of layers.

    Raises:
        ValueError: other units than whole layers.
    """
    if units not in (None, "layers"):
        raise ValueError(
            f"units={units}: attention or MLP alone cannot be deleted from a folder of weights; use units=layers"
        )


def check_shared(model: Any, vision: bool = False) -> None:
    """Refuse layers that have a parameter in common with each other, or with anything outside them.

    Args:
        model: A model of transformers, with or without content.
        vision: Whether layers of its vision tower may go, too.

    Raises:
        ValueError: names the first such parameter.
    """
    _check_shared(model, list(find_decoder(model).layers), "decoder")
    if vision:
        _check_shared(model, list(find_tower(model).layers), "vision")


def _check_shared(model: Any, layers: list[nn.Module], kind: str) -> None:
    owners: dict[int, int] = {}
    inside = {id(p) for layer in layers for p in layer.parameters()}
    for number, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            first = owners.setdefault(id(parameter), number)
            if first != number:
                raise ValueError(
                    f"{kind} layers {first} and {number} share {name}: a model whose layers share their weights gets no "
                    "smaller without one of them"
                )
    prefixes = {id(module) for layer in layers for module in layer.modules()}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in inside and id(module) not in prefixes:
                raise ValueError(f"{path}.{name} is tied to a {kind} layer: that layer cannot be deleted without it")


def with_parameters_of(whole: VLM, smaller: VLM, mask: np.ndarray) -> VLM:
    """The whole model with the parameters of the smaller one wherever that has them, sharing them: to be masked.

    Args:
        whole: The model before anything was deleted.
        smaller: What `cut` made of it, trained or not.
        mask: (n_layers,) bool, what was deleted.
    """
    model = shell(whole.model)
    pairs: list[tuple[nn.Module, nn.Module]] = []
    within: set[int] = set()
    for find, stream in ((find_decoder, JOINT), *([] if whole.tower is None else [(find_tower, IMAGE)])):
        layers, left = find(model).layers, find(smaller.model).layers
        kept = [place for place in range(len(layers)) if place not in whole.gone_of(mask, stream)]
        pairs += [(layers[place], left[number]) for number, place in enumerate(kept)]
        within |= {id(module) for each in (layers, left) for module in each.modules()}
    others = dict(smaller.model.named_modules())
    pairs += [(module, others[name]) for name, module in model.named_modules() if id(module) not in within]
    for target, source in pairs:
        deep = id(target) in within
        parts = zip(target.modules(), source.modules(), strict=True) if deep else [(target, source)]
        for mine, its in parts:
            _share(mine, its)
    return VLM(model, traits=whole.traits)


def _share(target: nn.Module, source: nn.Module) -> None:
    for name in target._parameters:
        target._parameters[name] = source._parameters[name]
