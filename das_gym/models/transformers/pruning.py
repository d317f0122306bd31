"""Layers deleted for good: what is left is an ordinary model of transformers, saved and loaded like any other."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from das_gym.models.transformers.stack import find_decoder

INDEX_LISTS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "mlp_only_layers",
    "moe_layers",
    "no_rope_layer_indices",
)
"""Settings that list layers by number."""

COUNTS = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
"""Settings that count the first layers that are of another kind."""

LASTS = ("moe_layer_end_index",)
"""Settings that number the last layer of a kind."""

SHARING = ("store_full_length_kv", "first_kv_shared_layer_idx")
"""Values that only tell from whom later layers take keys and values, which models that are driven do not."""


def prune(model: Any, mask: Sequence[bool] | np.ndarray) -> Any:
    """Delete the decoder layers that a mask skips; the model can then be saved with `save_pretrained`.

    Args:
        model: A model of transformers; it is changed.
        mask: (number of decoder layers,) bool, True = delete.

    Returns:
        The same model.

    Raises:
        ValueError: a mask of another shape, one that leaves nothing, or layers that cannot be deleted.
    """
    count = len(find_decoder(model).layers)
    array = np.asarray(mask)
    if array.shape != (count,) or not np.isin(array, (0, 1)).all():
        raise ValueError(f"mask of shape {array.shape}: this model has {count} decoder layers, give one bool each")
    gone = np.flatnonzero(array).tolist()
    difference = what_differs(delete_layers(shell(model), gone))
    if difference is not None:
        raise ValueError(
            f"{type(model).__name__} without its layers {gone} would not load again as it was: {difference}; "
            "use another mask"
        )
    return delete_layers(model, gone)


def delete_layers(model: Any, gone: Collection[int]) -> Any:
    """Delete decoder layers by position, and say so in the configuration; the model is changed and returned.

    Raises:
        ValueError: nothing would be left, or what is left cannot be said in the model's configuration.
    """
    decoder = find_decoder(model)
    count = len(decoder.layers)
    kept = [place for place in range(count) if place not in gone]
    if not kept:
        raise ValueError(f"all {count} decoder layers would be deleted: leave one at least")
    setattr(decoder.owner, decoder.name, nn.ModuleList(decoder.layers[place] for place in kept))
    for number, place in enumerate(kept):
        _renumber(find_decoder(model).layers[number], place, number)
    for config in _configs_of(model, decoder.owner):
        _shorten(config, kept, count)
    return model


def shell(model: Any) -> Any:
    """A copy that shares every parameter and buffer with the model, and nothing else: layers can be deleted from it."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def what_differs(model: Any) -> str | None:
    """What another model built from this one's configuration would have otherwise: its reloaded self; None = nothing.

    Built on torch's `meta` device, so that it costs no memory.
    """
    config = type(model.config).from_dict(model.config.to_dict())  # as reading it does: some mend what they are given
    with torch.device("meta"):
        twin = type(model)(config)
    mine, its = dict(model.named_modules()), dict(twin.named_modules())
    for name in sorted(mine.keys() ^ its.keys()):
        return f"the part {name} is {'missing' if name in mine else 'new'} after reloading"
    for name, module in mine.items():
        other = its[name]
        if type(module) is not type(other):
            return f"{name} is a {type(module).__name__}, and a {type(other).__name__} after reloading"
        shapes, others = (
            {key: tuple(value.shape) for key, value in part.named_parameters(recurse=False)} for part in (module, other)
        )
        if shapes != others:
            return f"the parameters of {name} have other shapes after reloading: {shapes}, {others}"
        for key, value in _plain(module).items():
            if key not in SHARING and key in (known := _plain(other)) and known[key] != value:
                return f"{name}.{key} is {value}, and {known[key]} after reloading"
    return None


def _plain(module: nn.Module) -> dict[str, Any]:
    """Settings of a module that are plain values; those of training and of hooks aside."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | tuple) and not name.startswith("_") and name != "training"
    }


def _renumber(layer: nn.Module, before: int, after: int) -> None:
    """Say the new position wherever a layer says its own."""
    for module in layer.modules():
        for name in ("layer_idx", "layer_number", "layer_id"):
            if getattr(module, name, None) == before:
                setattr(module, name, after)


def _configs_of(model: Any, owner: nn.Module) -> Iterator[Any]:
    """The configurations that describe the decoder, each once."""
    seen: set[int] = set()
    found = [getattr(owner, "config", None), model.config.get_text_config(decoder=True)]
    found += [getattr(module, "config", None) for module in owner.modules()]
    for config in found:
        if hasattr(config, "num_hidden_layers") and id(config) not in seen:
            seen.add(id(config))
            yield config


def _shorten(config: Any, kept: Sequence[int], count: int) -> None:
    """Cut everything in a configuration that goes layer by layer."""
    if config.num_hidden_layers != count:
        return
    for name, value in list(vars(config).items()):
        if name in INDEX_LISTS and isinstance(value, list):
            setattr(config, name, [kept.index(place) for place in value if place in kept])
        elif isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, type(value)(value[place] for place in kept))
        elif name in COUNTS and isinstance(value, int):
            setattr(config, name, sum(place < value for place in kept))
        elif name in LASTS and isinstance(value, int) and value >= 0:
            setattr(config, name, sum(place <= value for place in kept) - 1)
    config.num_hidden_layers = len(kept)
