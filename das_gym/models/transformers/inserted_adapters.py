"""Adapters in a model whose units were removed: linear maps instead of these, or those of DAS, also next to kept layers."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from das_gym.models.adapters import Adapter, LinearMap
from das_gym.models.base import HALVES
from das_gym.models.macs import share_copy
from das_gym.models.transformers.layer_removal import (
    decoder_path,
    delete_layers,
    full_model_with_parameters,
    pruned_capabilities,
    pruned_copy,
    reload_difference,
)
from das_gym.models.transformers.linear_skips import joins_next
from das_gym.models.transformers.loading import ADAPTERS_KEY
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.modeling_das_adapters import add_adapters
from das_gym.models.transformers.stack import ATTENTION_NAMES, JOINT, MLP_NAMES, child, child_name, find_decoder, module_path
from das_gym.models.transformers.tower import find_projectors
from das_gym.models.transformers.units import INPUT_NORMS, LAYER, insert_layer_adapters, strip_adapters


def has_adapters(model: Any) -> bool:
    """Return True if a model of transformers has adapters of DAS or linear maps."""
    return hasattr(model.config, ADAPTERS_KEY)


def insert_into_pruned(smaller: VLM, full: VLM, bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    """Insert adapters that begin as zero into a `pruned_copy`; return their parameters, in float32 at least."""
    if full.untrainable:
        raise ValueError(full.untrainable)
    kept = _kept_places(smaller, full)
    removed = [layer for place, layer in enumerate(full.stack.layers) if place not in kept]
    return _insert(smaller, kept, [child(layer, INPUT_NORMS) for layer in removed], bottleneck, skip_bottleneck)


def copy_with_linear_skips(full: VLM, mask: np.ndarray) -> VLM:
    """Return a copy of a model with its linear skip adapters instead of the units that a mask skips; it shares the rest.

    Decoder layers are removed, as `pruned_copy` does. Attentions, MLPs and vision layers keep their places: other parts may
    read the norms before them, and the model reads vision layers by position.
    """
    skipped = np.flatnonzero(mask).tolist()
    adapters: list[Any] = [full.skippable_layer(index).module_for(True) for index in skipped]
    is_removed = np.array([_is_removed_whole(full, index) for index in range(len(mask))]) & mask
    smaller = pruned_copy(full, is_removed)
    replaced = {}
    for index, adapter in zip(skipped, adapters, strict=True):
        if not is_removed[index]:
            module: Any = full.module_of(index)
            form = {"width": adapter.up.out_features, "outputs": getattr(module, "_das_outputs", 0)}
            replaced[module_path(full.model, module)] = {**form, "is_layer": full.layers[index].kind == LAYER}
    attentions: list[Any] = []
    if full.unit_kind != "layers":
        attentions = [child(layer, ATTENTION_NAMES) for layer in smaller.stack.layers]
    settings = {
        "form": "linear",
        "rank": next(each.rank for each in adapters if isinstance(each, LinearMap)),
        "shared": any(isinstance(each, nn.Identity) for each in adapters),
        **_positions(smaller, _kept_places(smaller, full), int(is_removed.sum())),
        "replaced": replaced,
        "attentions": [module_path(smaller.model, attention) for attention in attentions],
    }
    _add_and_note(smaller, settings)
    for mine, its in zip(_linear_maps(smaller, full, mask), adapters, strict=True):
        mine.load_state_dict(its.state_dict())
    smaller.freeze()
    return smaller


def _is_removed_whole(full: VLM, index: int) -> bool:
    return full.layers[index].kind == LAYER and full.layers[index].stream == JOINT


def _linear_maps(smaller: VLM, full: VLM, mask: np.ndarray) -> list[Any]:
    of_layers = iter(_skipped_layers(smaller))
    found = []
    is_shared = getattr(smaller.model.config, ADAPTERS_KEY)["shared"]
    for index in np.flatnonzero(mask).tolist():
        if is_shared and joins_next(full, index, mask):
            found.append(nn.Identity())
        elif _is_removed_whole(full, index):
            found.append(next(of_layers))
        else:
            module: Any = smaller.model.get_submodule(module_path(full.model, full.module_of(index)))
            found.append(module.linear_skip)
    return found


def _kept_places(smaller: VLM, full: VLM) -> list[int]:
    places = {id(next(layer.parameters())): place for place, layer in enumerate(full.stack.layers)}
    return [places[id(next(layer.parameters()))] for layer in smaller.stack.layers]


def _positions(smaller: VLM, kept: list[int], removed: int) -> dict[str, Any]:
    """Return the settings of `add_adapters` about layers: kept ones by position, and the number of removed ones."""
    ends = [-1, *kept, len(kept) + removed]
    return {
        "layers": decoder_path(smaller),
        "hidden_size": smaller.feature_size,
        "removed_before": [after - before - 1 for before, after in pairwise(ends)],
    }


def _add_and_note(smaller: VLM, settings: dict[str, Any]) -> None:
    add_adapters(smaller.model, settings)
    setattr(smaller.model.config, ADAPTERS_KEY, settings)


def _insert(smaller: VLM, kept: list[int], norms: list[Any], bottleneck: int, skip_bottleneck: int) -> list[nn.Parameter]:
    layer = smaller.stack.layers[0]
    settings = {
        **_positions(smaller, kept, len(norms)),
        "norm": child_name(layer, INPUT_NORMS),
        "attention": child_name(layer, ATTENTION_NAMES),
        "mlp": child_name(layer, MLP_NAMES),
        "bottleneck": bottleneck,
        "skip_bottleneck": skip_bottleneck,
    }
    _add_and_note(smaller, settings)
    for unit, norm in zip(_skipped_layers(smaller), norms, strict=True):
        unit.norm.load_state_dict(norm.state_dict())
    trained = []
    for module in smaller.model.modules():
        if isinstance(module, Adapter):
            if next(module.parameters()).dtype in HALVES:
                module.float()
            trained += list(module.requires_grad_(True).parameters())
    return trained


def exportable_subnet(subnet: VLM) -> VLM:
    """Return a fine-tuned subnet as it is saved, without skipped layers; ValueError if a folder cannot hold its modules."""
    mask = subnet.check_mask(None)
    model = share_copy(subnet.model)
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
        skip_adapters: list[Any] = [subnet.skippable_layer(index).skip_adapter for index in np.flatnonzero(mask).tolist()]
        kept = [place for place in range(len(subnet.stack.layers)) if place not in removed]
        adapters = [module for module in subnet.stack.layers.modules() if isinstance(module, Adapter)]
        widths = [adapter.down.out_features for adapter in (*adapters, *(unit.adapter for unit in skip_adapters))]
        _insert(smaller, kept, [unit.norm for unit in skip_adapters], widths[0], widths[-1])
        for mine, its in _pairs(subnet, smaller, mask):
            its.to(mine.down.weight).load_state_dict(mine.state_dict())
    smaller.freeze()
    return smaller


def full_model_with_adapters(full: VLM, smaller: VLM, mask: np.ndarray) -> VLM:
    """Return the full model with adapters, as a supernet; those that run under the mask get the smaller model's weights."""
    settings = getattr(smaller.model.config, ADAPTERS_KEY)
    if settings.get("form") == "linear":
        masked = full_model_with_parameters(full, smaller, mask)
        for index, linear in zip(np.flatnonzero(mask).tolist(), _linear_maps(smaller, full, mask), strict=True):
            masked.skippable_layer(index).skip_adapter = linear
        return masked
    masked = VLM(share_copy(full.model), capabilities=full.capabilities)
    masked.insert_adapters(settings["bottleneck"], settings["skip_bottleneck"])
    for place in masked.capabilities.protected:  # `smaller` has adapters in every layer that it keeps
        insert_layer_adapters(masked.stack.layers[place], masked.feature_size, settings["bottleneck"], None)
    for mine, its in _pairs(masked, smaller, mask):
        mine.to(its.down.weight).load_state_dict(its.state_dict())
    return masked.eval()


def _pairs(masked: VLM, smaller: VLM, mask: np.ndarray) -> Iterator[tuple[Adapter, Adapter]]:
    removed = iter(_skipped_layers(smaller))
    kept = iter(smaller.stack.layers)
    index_of = {place: index for index, place in enumerate(masked.places)}
    for place, layer in enumerate(masked.stack.layers):
        index = index_of.get(place)
        if index is not None and mask[index]:
            unit: Any = masked.skippable_layer(index).skip_adapter
            yield unit.adapter, next(removed).adapter
            continue
        its: Any = next(kept)
        for name, part in layer.named_children():
            mine: Any = getattr(part, "das_adapter", None)
            if mine is not None:
                yield mine, its.get_submodule(name).das_adapter


def _skipped_layers(smaller: VLM) -> list[Any]:
    units: list[Any] = []
    for layer in smaller.stack.layers:
        units += [*getattr(layer, "removed_before", ()), *getattr(layer, "removed_after", ())]
    return units
