"""Layers deleted for good: what is left is an ordinary model of transformers, saved and loaded like any other."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from das_gym.models.macs import without_content
from das_gym.models.transformers.stack import Stack, find_decoder, find_tower

INDEX_LISTS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "mlp_only_layers",
    "moe_layers",
    "no_rope_layer_indices",
    "rope_scaling_layers",
)
"""Settings that list layers by number."""

COUNTS = ("first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers")
"""Settings that count the first layers that are of another kind."""

LASTS = ("moe_layer_end_index",)
"""Settings that number the last layer of a kind."""

LAYER_COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers")
"""What configurations of vision towers, and modules that hold a list of layers, call their number."""

NOT_BY_LAYER = ("_token_id", "_token_ids", "_multipliers", "_section", "architectures")
"""Ends of names of settings that are no lists of layers, even if they are as long."""

READS = ("vision_feature_layer", "vision_feature_layers", "intermediate_layers_indices")
"""Settings that number hidden vectors of a vision tower: 0 is its input, -1 what its last layer gives."""

TOWER_INDEX_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")
"""Settings that list layers of a vision tower by number."""

SOURCES = ("kv_source_layers",)
"""Settings that name, layer by layer, the layer that keys and values come from."""

SLIDING = "has_sliding_layers"
"""What a decoder calls it that a layer of its configuration attends to a window."""

SHARING = ("store_full_length_kv", "first_kv_shared_layer_idx")
"""Values that only tell from whom later layers take keys and values, which models that are driven do not."""


def prune(model: Any, mask: Sequence[bool] | np.ndarray, vision_mask: Sequence[bool] | np.ndarray | None = None) -> Any:
    """Delete the layers that a mask skips; the model can then be saved with `save_pretrained`.

    Args:
        model: A model of transformers; it is changed.
        mask: (number of decoder layers,) bool, True = delete.
        vision_mask: (number of layers of its vision tower,) bool likewise; None = all of them stay.

    Returns:
        The same model.

    Raises:
        ValueError: a mask of another shape, one that leaves nothing, or layers that cannot be deleted.
    """
    gone = _positions(mask, len(find_decoder(model).layers), "mask", "decoder layers")
    seen = (
        []
        if vision_mask is None
        else _positions(vision_mask, len(find_tower(model).layers), "vision_mask", "layers in its vision tower")
    )
    difference = what_differs(delete_layers(shell(model), gone, seen))
    if difference is not None:
        layers = f"its layers {gone}" + (f" and {seen} of its vision tower" if seen else "")
        raise ValueError(
            f"{type(model).__name__} without {layers} would not load again as it was: {difference}; use another mask"
        )
    return delete_layers(model, gone, seen)


def _positions(mask: Sequence[bool] | np.ndarray, count: int, name: str, what: str) -> list[int]:
    """Where a mask is true."""
    array = np.asarray(mask)
    if array.shape != (count,) or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} of shape {array.shape}: this model has {count} {what}, give one bool each")
    return np.flatnonzero(array).tolist()


def delete_layers(model: Any, gone: Collection[int], seen: Collection[int] = ()) -> Any:
    """Delete layers by position, and say so in the configuration; the model is changed and returned.

    Args:
        model: A model of transformers.
        gone: Positions of decoder layers.
        seen: Positions of layers of the vision tower.

    Raises:
        ValueError: nothing would be left, or what is left cannot be said in the model's configuration.
    """
    decoder = find_decoder(model)
    count, kept = _delete(decoder, gone, "decoder layers")
    for config in _configs_of(model, decoder.owner):
        _shorten(config, kept, count)
    for module in decoder.owner.modules():
        for name in INDEX_LISTS:
            if isinstance(listed := getattr(module, name, None), list):
                setattr(module, name, [kept.index(place) for place in listed if place in kept])
        _drop_kinds(module)
    for name, value in list(vars(decoder.owner).items()):  # such as Molmo 2's kinds of rotary embeddings
        if isinstance(value, list) and len(value) == count and all(isinstance(kind, str) for kind in value):
            setattr(decoder.owner, name, [value[place] for place in kept])
    if seen:
        delete_vision_layers(model, seen)
    return model


def _drop_kinds(module: Any) -> None:
    """Have a module know of those kinds of layers alone that its configuration, cut already, still has."""
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    if kinds is None:
        return
    if hasattr(module, SLIDING):
        setattr(module, SLIDING, "sliding_attention" in kinds)
    listed = getattr(module, "layer_types", None)
    if isinstance(listed, list) and len(set(listed)) == len(listed):  # such as those of Gemma 4's rotary embeddings
        module.layer_types = [kind for kind in listed if kind in kinds]


def delete_vision_layers(model: Any, seen: Collection[int]) -> None:
    """Delete layers of the vision tower, as `delete_layers` does those of the decoder."""
    count, kept = _delete(find_tower(model), seen, "layers of the vision tower")
    inside = model.get_encoder(modality="image").modules()
    told = {id(config): config for module in inside if (config := getattr(module, "config", None)) is not None}
    for config in told.values():
        _shorten_tower(config, kept, count)
    for part in {id(part): part for part in (*model.modules(), *told.values(), model.config)}.values():
        _renumber_reads(part, kept, count)


def _delete(layers: Stack, gone: Collection[int], what: str) -> tuple[int, list[int]]:
    """Cut a list of layers; how many there were, and the positions of those that stay."""
    count = len(layers.layers)
    kept = [place for place in range(count) if place not in gone]
    if not kept:
        raise ValueError(f"all {count} {what} would be deleted: leave one at least")
    setattr(layers.owner, layers.name, nn.ModuleList(layers.layers[place] for place in kept))
    for name in LAYER_COUNTS:
        if vars(layers.owner).get(name) == count:
            setattr(layers.owner, name, len(kept))
    for number, place in enumerate(kept):
        _renumber(layers.layers[number], place, number)
    return count, kept


def shell(model: Any) -> Any:
    """A copy that shares every parameter and buffer with the model, and nothing else: layers can be deleted from it."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def what_differs(model: Any) -> str | None:
    """What another model built from this one's configuration would have otherwise: its reloaded self; None = nothing.

    Built on torch's `meta` device, so that it costs no memory.
    """
    try:
        config = type(model.config).from_dict(model.config.to_dict())  # as reading it does: some mend what they are given
        with without_content():
            twin = type(model)(config)
    except Exception as error:  # whatever a configuration that checks itself raises
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"its configuration is refused then ({said[-1]})"
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
            if key not in SHARING and key in (known := _plain(other)) and not _equal(known[key], value):
                return f"{name}.{key} is {value}, and {known[key]} after reloading"
    return None


def apart(places: Sequence[int]) -> list[list[int]]:
    """Halves of the places such that of any two one lies in some half, and the other does not."""
    bits = range((len(places) - 1).bit_length())
    return [[p for n, p in enumerate(places) if n >> bit & 1 == side] for bit in bits for side in (0, 1)]


def _plain(module: nn.Module) -> dict[str, Any]:
    """Settings of a module that are plain values; those of training, such as rates of dropout, and of hooks aside."""
    return {
        name: value
        for name, value in vars(module).items()
        if _is_plain(value) and not name.startswith("_") and name != "training" and "drop" not in name
    }


def _equal(one: Any, other: Any) -> bool:
    """Whether two plain values are the same, but for the rounding of what was computed in another type."""
    return math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) and isinstance(other, float) else one == other


def _is_plain(value: Any) -> bool:
    """Whether it is a plain value, or a list of numbers or words, such as those of layers of a kind, or the kind of each."""
    if isinstance(value, list):
        return all(isinstance(part, int | str) for part in value)
    return isinstance(value, int | float | str | tuple)


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
        if name in SOURCES and isinstance(value, list):
            setattr(config, name, [kept.index(value[place]) for place in kept if value[place] in kept])
        elif name in INDEX_LISTS and isinstance(value, list):
            setattr(config, name, [kept.index(place) for place in value if place in kept])
        elif isinstance(value, list | tuple) and len(value) == count and not name.endswith(NOT_BY_LAYER):
            setattr(config, name, type(value)(value[place] for place in kept))
        elif name in COUNTS and isinstance(value, int):
            setattr(config, name, sum(place < value for place in kept))
        elif name in LASTS and isinstance(value, int) and value >= 0:
            setattr(config, name, sum(place <= value for place in kept) - 1)
    config.num_hidden_layers = len(kept)
    own = vars(config).get("_heterogeneity_spec")  # layers with settings of their own, by number
    if own is not None:
        settings = own.per_layer_overrides.items()
        config.per_layer_config = {kept.index(place): dict(value) for place, value in settings if place in kept}


def _shorten_tower(config: Any, kept: Sequence[int], count: int) -> None:
    """As `_shorten`, for a vision tower: only lists that speak of layers, since sizes of pictures may be as long."""
    names = [name for name in LAYER_COUNTS if getattr(config, name, None) == count]
    for name in names[:1]:
        for other, value in list(vars(config).items()):
            if "layer" in other and other not in READS and isinstance(value, list | tuple) and len(value) == count:
                setattr(config, other, type(value)(value[place] for place in kept))
        setattr(config, name, len(kept))


def _renumber_reads(part: Any, kept: Sequence[int], count: int) -> None:
    """Say which hidden vectors are read, and which layers are special, wherever a module or a configuration says so."""
    for name, value in list(vars(part).items()):
        if name in READS and isinstance(value, int | list | tuple) and not isinstance(value, bool):
            new = [_read(place, kept, count) for place in (value if isinstance(value, list | tuple) else [value])]
            setattr(part, name, type(value)(new) if isinstance(value, list | tuple) else new[0])
        elif name in TOWER_INDEX_LISTS and isinstance(value, list | tuple):
            setattr(part, name, type(value)(kept.index(place) for place in value if place in kept))


def _read(place: int, kept: Sequence[int], count: int) -> int:
    """Which of the smaller tower's hidden vectors, its input being the first, are those of a place in the larger one's."""
    first = place + count + 1 if place < 0 else place
    after = sum(layer < first for layer in kept)
    return after - len(kept) - 1 if place < 0 else after
