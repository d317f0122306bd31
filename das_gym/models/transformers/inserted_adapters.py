"""The adapters of DAS in a model whose layers were removed: next to kept layers, and instead of removed ones.

Such a model is saved with the code that inserts its adapters, see `own_code` and `modeling_das_adapters`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import HALVES
from das_gym.models.transformers.adapters import ATTENTION_ADAPTER, INPUT_NORMS, MLP_ADAPTER, strip_adapters
from das_gym.models.transformers.features import find_projectors
from das_gym.models.transformers.layer_removal import (
    decoder_path,
    delete_layers,
    pruned_capabilities,
    reload_difference,
    share_copy,
)
from das_gym.models.transformers.loading import ADAPTED
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.modeling_das_adapters import add_adapters
from das_gym.models.transformers.stack import ATTENTION_NAMES, MLP_NAMES, child, child_name, find_decoder


def has_adapters(model: Any) -> bool:
    """Return whether a model of transformers has inserted adapters."""
    return hasattr(model.config, ADAPTED)


def kept_layers(full: VLM, smaller: VLM) -> list[int]:
    """Return the positions in the full model of the layers of a `pruned_copy`, whose parameters both share."""
    places = {id(next(layer.parameters())): place for place, layer in enumerate(full.stack.layers)}
    return [places[id(next(layer.parameters()))] for layer in smaller.stack.layers]


def insert_into_pruned(smaller: VLM, full: VLM, bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    """Insert adapters into a pruned model; return the parameters to train, in float32 at least.

    They begin as zero: the model's outputs do not change.

    Args:
        smaller: As `pruned_copy` made it.
        full: The model that it was made of.
        bottleneck: Width of the adapters before attention and MLP, at least 1.
        skip_bottleneck: Width of those that replace removed layers.

    Raises:
        ValueError: Layers without a place for adapters.
    """
    if full.untrainable:
        raise ValueError(full.untrainable)
    kept = kept_layers(full, smaller)
    removed = [layer for place, layer in enumerate(full.stack.layers) if place not in kept]
    return _insert(smaller, kept, [child(layer, INPUT_NORMS) for layer in removed], bottleneck, skip_bottleneck)


def _insert(smaller: VLM, kept: list[int], norms: list[Any], bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    """Insert adapters at the positions of kept layers, with the norms of removed ones; see `insert_into_pruned`."""
    layer, ends = smaller.stack.layers[0], [-1, *kept, len(kept) + len(norms)]
    settings = {
        "layers": decoder_path(smaller),
        "norm": child_name(layer, INPUT_NORMS),
        "attention": child_name(layer, ATTENTION_NAMES),
        "mlp": child_name(layer, MLP_NAMES),
        "hidden_size": smaller.feature_size,
        "bottleneck": bottleneck,
        "skip_bottleneck": skip_bottleneck,
        "removed_before": [after - before - 1 for before, after in pairwise(ends)],
    }
    add_adapters(smaller.model, settings)
    setattr(smaller.model.config, ADAPTED, settings)
    for unit, norm in zip(_skipped_layers(smaller), norms, strict=True):
        unit.norm.load_state_dict(norm.state_dict())
    trained = []
    for module in smaller.model.modules():
        if isinstance(module, Adapter):
            if next(module.parameters()).dtype in HALVES:
                module.float()
            trained += list(module.requires_grad_(True).parameters())
    return trained


def export_form(subnet: VLM) -> VLM:
    """Return a fine-tuned subnet in the form in which it is saved: skipped layers removed, adapters inserted.

    Args:
        subnet: A pruned model. Apart from the adapters, the returned model shares its parameters.

    Raises:
        ValueError: Training added modules that cannot be saved, or the layers cannot be removed.
    """
    mask, model = subnet.check_mask(None), share_copy(subnet.model)
    for layer in find_decoder(model).layers:
        strip_adapters(layer)
    for projector in find_projectors(model).values():  # one that trained computes in 32 bits, by hooks
        for module in projector.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
    removed = subnet.removed_layers(mask)
    delete_layers(model, removed)
    difference = reload_difference(model)
    if difference is not None:
        raise ValueError(
            f"A transformers folder cannot contain the modules that this fine-tuning added: {difference}. "
            "The methods `full`, `lora`, `bitfit` and `das` can be exported."
        )
    smaller = VLM(model, capabilities=pruned_capabilities(subnet))
    if subnet.tunable:
        units: list[Any] = [subnet.skippable(index).skip_adapter for index in np.flatnonzero(mask).tolist()]
        kept = [place for place in range(len(subnet.stack.layers)) if place not in removed]
        layers = {place: subnet.stack.layers[place] for place in kept}
        layers = {place: layer for place, layer in layers.items() if hasattr(layer, ATTENTION_ADAPTER)}
        first: Any = next((getattr(layer, ATTENTION_ADAPTER) for layer in layers.values()), None)
        widths = [a.down.out_features for a in (first, units[0].adapter if units else first) if a is not None]
        _insert(smaller, kept, [unit.norm for unit in units], widths[0], widths[-1])
        for unit, mine in zip(units, _skipped_layers(smaller), strict=True):
            _copy(unit.adapter, mine.adapter)
        for place, layer in layers.items():
            mine = smaller.stack.layers[kept.index(place)]
            _copy(getattr(layer, ATTENTION_ADAPTER), _inserted(mine, ATTENTION_NAMES))
            _copy(getattr(layer, MLP_ADAPTER), _inserted(mine, MLP_NAMES))
    smaller.freeze()
    return smaller


def full_with_adapters_of(full: VLM, smaller: VLM, mask: np.ndarray) -> VLM:
    """Return the full model with adapters, as a supernet. Adapters that the smaller model has get its weights.

    Args:
        full: The model before anything was removed.
        smaller: The result of `insert_into_pruned`, trained.
        mask: (n_layers,) bool, what was removed.
    """
    settings = getattr(smaller.model.config, ADAPTED)
    masked = VLM(share_copy(full.model), capabilities=full.capabilities)
    masked.insert_adapters(settings["bottleneck"], settings["skip_bottleneck"])
    units, kept = iter(_skipped_layers(smaller)), iter(smaller.stack.layers)
    for index, (place, skipped) in enumerate(zip(masked.places, mask, strict=True)):
        if skipped:
            unit: Any = masked.skippable(index).skip_adapter
            _copy(next(units).adapter, unit.adapter)
            continue
        mine, its = masked.stack.layers[place], next(kept)
        _copy(_inserted(its, ATTENTION_NAMES), getattr(mine, ATTENTION_ADAPTER))
        _copy(_inserted(its, MLP_NAMES), getattr(mine, MLP_ADAPTER))
    return masked.eval()


def _skipped_layers(smaller: VLM) -> list[Any]:
    """Return the modules that replace removed layers, in order."""
    units: list[Any] = []
    for layer in smaller.stack.layers:
        units += [*getattr(layer, "removed_before", ()), *getattr(layer, "removed_after", ())]
    return units


def _inserted(layer: nn.Module, names: tuple[str, ...]) -> Any:
    return child(layer, names).das_adapter  # type: ignore[union-attr]


def _copy(source: Any, target: nn.Module) -> None:
    target.to(source.down.weight).load_state_dict(source.state_dict())
