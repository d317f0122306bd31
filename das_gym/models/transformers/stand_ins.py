"""The adapters of DAS in a shrunk model: beside what is left, and in the place of what was deleted; kept as adapters."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from das_gym.files import read_json, write_json, write_text
from das_gym.models.adapters import Adapter
from das_gym.models.remote_code import copy_code
from das_gym.models.transformers.adapters import ATTENTION_ADAPTER, INPUT_NORMS, MLP_ADAPTER, strip_adapters
from das_gym.models.transformers.cutting import decoder_path
from das_gym.models.transformers.features import projector_of
from das_gym.models.transformers.loading import ADAPTED, auto_class
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.modeling_das_adapters import add_adapters
from das_gym.models.transformers.pruning import delete_layers, shell, what_differs
from das_gym.models.transformers.stack import ATTENTION_NAMES, MLP_NAMES, child, find_decoder

CLASS = '''

from transformers import {base}  # noqa: E402


class {base}WithAdapters({base}):
    """A {base} of transformers with the adapters that its configuration tells of."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        add_adapters(self, config.{settings})
'''
"""What the folder's file of code ends with."""


def has_adapters(model: Any) -> bool:
    """Whether `stand_in` has put adapters into a model of transformers."""
    return hasattr(model.config, ADAPTED)


def layers_left(whole: VLM, smaller: VLM) -> list[int]:
    """Positions in the whole model of the layers that `cutting.cut` left, whose parameters both have."""
    places = {id(next(layer.parameters())): place for place, layer in enumerate(whole.stack.layers)}
    return [places[id(next(layer.parameters()))] for layer in smaller.stack.layers]


def stand_in(smaller: VLM, whole: VLM, bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    """Put adapters into a model from which layers were cut; what trains is returned, in 32 bits at least.

    They begin as zero: the model says what it said before.

    Args:
        smaller: As `cutting.cut` made it.
        whole: The model that it was cut from.
        bottleneck: Width of the adapters before attention and MLP, at least 1.
        skip_bottleneck: Width of those in the place of deleted layers.

    Raises:
        ValueError: layers without a place for adapters.
    """
    if whole.untrainable:
        raise ValueError(whole.untrainable)
    left = layers_left(whole, smaller)
    norm = child(smaller.stack.layers[0], INPUT_NORMS) or ""
    norms = [getattr(whole.stack.layers[place], norm) for place in _gone(whole, left)]
    return _put(smaller, left, norms, bottleneck, skip_bottleneck)


def _put(smaller: VLM, left: list[int], norms: list[nn.Module], bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    """As `stand_in`, for the places of the layers that are left, and the norms of those that are gone, in order."""
    layers = smaller.stack.layers
    ends = [-1, *left, len(left) + len(norms)]
    settings: dict[str, Any] = {
        "layers": decoder_path(smaller),
        "norm": child(layers[0], INPUT_NORMS),
        "attention": child(layers[0], ATTENTION_NAMES),
        "mlp": child(layers[0], MLP_NAMES),
        "hidden_size": smaller.feature_size,
        "bottleneck": bottleneck,
        "skip_bottleneck": skip_bottleneck,
        "gone_before": [after - before - 1 for before, after in pairwise(ends)],
    }
    add_adapters(smaller.model, settings)
    setattr(smaller.model.config, ADAPTED, settings)
    for unit, norm in zip(_gone_units(smaller), norms, strict=True):
        unit.norm.load_state_dict(norm.state_dict())
    adapters = [module for module in smaller.model.modules() if isinstance(module, Adapter)]
    for adapter in adapters:
        if next(adapter.parameters()).dtype in (torch.float16, torch.bfloat16):
            adapter.float()
    trained = [parameter for adapter in adapters for parameter in adapter.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def as_saved(subnet: VLM) -> VLM:
    """A fine-tuned model as a folder of transformers has it: its skipped layers gone, its adapters in the folder's form.

    Args:
        subnet: Pruned; it shares its parameters, but for those of adapters, with what is returned.

    Raises:
        ValueError: training left something in it that no folder says, or layers that cannot be deleted.
    """
    mask, model = subnet.check_mask(None), shell(subnet.model)
    for layer in find_decoder(model).layers:
        strip_adapters(layer)
    for module in projector_of(model).values():  # one that trained computes in 32 bits, by hooks
        for part in module.modules():
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()
    gone = subnet.gone_of(mask) if subnet.tunable else []
    delete_layers(model, gone)
    difference = what_differs(model)
    if difference is not None:
        raise ValueError(
            f"what this fine-tuning left cannot be told by a folder of transformers: {difference}; of the methods, full, "
            "lora, bitfit and das can be exported"
        )
    smaller = VLM(model, traits=dataclasses.replace(subnet.traits, tower=None, keys_only=False))
    if subnet.tunable:
        _take_over(subnet, smaller, mask)
    smaller.freeze()
    return smaller


def _take_over(subnet: VLM, smaller: VLM, mask: np.ndarray) -> None:
    """Put the adapters of a pruned model into what is left of it without them."""
    units: list[Any] = [subnet.skippable(index).skip_adapter for index in np.flatnonzero(mask).tolist()]
    gone = subnet.gone_of(mask)
    left = [place for place in range(len(subnet.stack.layers)) if place not in gone]
    layers = dict(zip(left, smaller.stack.layers, strict=True))
    own = [place for place, bit in zip(subnet.places, mask, strict=True) if not bit]
    first: Any = next((getattr(subnet.stack.layers[place], ATTENTION_ADAPTER) for place in own), None)
    widths = [adapter.down.out_features for adapter in (first, units[0].adapter if units else first) if adapter is not None]
    _put(smaller, left, [unit.norm for unit in units], widths[0], widths[-1])
    for unit, mine in zip(units, _gone_units(smaller), strict=True):
        _copy(unit.adapter, mine.adapter)
    settings = getattr(smaller.model.config, ADAPTED)
    for place in own:
        for part, name in ((settings["attention"], ATTENTION_ADAPTER), (settings["mlp"], MLP_ADAPTER)):
            _copy(getattr(subnet.stack.layers[place], name), getattr(layers[place], part).das_adapter)


def masked_with(whole: VLM, smaller: VLM, mask: np.ndarray) -> VLM:
    """The whole model with its skippable layers' adapters, those that the smaller one has with their weights: to be masked.

    It is driven as a supernet is, and not by the code that the smaller one's folder gets.

    Args:
        whole: The model before anything was deleted.
        smaller: What `stand_in` made of it, trained.
        mask: (n_layers,) bool, what was deleted.
    """
    settings = getattr(smaller.model.config, ADAPTED)
    masked = VLM(shell(whole.model), traits=whole.traits)
    masked.insert_adapters(settings["bottleneck"], settings["skip_bottleneck"])
    units, kept = iter(_gone_units(smaller)), iter(smaller.stack.layers)
    for index, (place, skipped) in enumerate(zip(masked.places, mask, strict=True)):
        if skipped:
            unit: Any = masked.skippable(index).skip_adapter
            _copy(next(units).adapter, unit.adapter)
            continue
        mine, its = masked.stack.layers[place], next(kept)
        for part, name in ((settings["attention"], ATTENTION_ADAPTER), (settings["mlp"], MLP_ADAPTER)):
            _copy(getattr(its, part).das_adapter, getattr(mine, name))
    return masked.eval()


def write_code(folder: Path, model: Any) -> None:
    """Put the code that loads a saved model with adapters into its folder, and its name into the configuration.

    Args:
        folder: As `save_pretrained` left it.
        model: What was saved.
    """
    base, file = type(model).__name__, folder / "modeling_das_adapters.py"
    copy_code(folder, "das_gym.models.transformers.modeling_das_adapters", "das_gym.models.adapters")
    write_text(file, file.read_text(encoding="utf-8") + CLASS.format(base=base, settings=ADAPTED))
    config = read_json(folder / "config.json")
    name = f"{base}WithAdapters"
    config["architectures"] = [name]
    config["auto_map"] = {auto_class(model.config).__name__: f"{file.stem}.{name}"}
    write_json(folder / "config.json", config, indent=2)


def _gone(whole: VLM, left: list[int]) -> list[int]:
    return [place for place in range(len(whole.stack.layers)) if place not in left]


def _gone_units(smaller: VLM) -> list[Any]:
    """What stands in for deleted layers, in order."""
    units: list[Any] = []
    for layer in smaller.stack.layers:
        units += [*getattr(layer, "gone_before", ()), *getattr(layer, "gone_behind", ())]
    return units


def _copy(source: Any, target: nn.Module) -> None:
    target.to(source.down.weight).load_state_dict(source.state_dict())
