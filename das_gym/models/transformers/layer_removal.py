"""Remove layers for good: what is left is an ordinary model of transformers, saved and loaded like any other."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from das_gym.models.macs import share_copy, without_content
from das_gym.models.transformers.modeling_removed_sublayers import SUBLAYERS, cache_kinds, remove_sublayers
from das_gym.models.transformers.stack import (
    ATTENTION_NAMES,
    IMAGE,
    JOINT,
    PART_NAMES,
    Stack,
    child,
    child_name,
    find_decoder,
    find_vision_tower,
    module_path,
)

if TYPE_CHECKING:
    from das_gym.models.transformers.model import VLM

LAYER_COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers")


def _positions_left(value: Any, kept: Sequence[int], count: int) -> Any:
    return type(value)(kept.index(place) for place in value if place in kept)


def _sources_left(value: Any, kept: Sequence[int], count: int) -> Any:
    """Renumber a list that has, layer by layer, the layer that keys and values come from."""
    return [kept.index(value[place]) for place in kept if value[place] in kept]


def _first_left(value: Any, kept: Sequence[int], count: int) -> Any:
    return sum(place < value for place in kept)


def _last_left(value: Any, kept: Sequence[int], count: int) -> Any:
    return sum(place <= value for place in kept) - 1 if value >= 0 else value


def _states_left(value: Any, kept: Sequence[int], count: int) -> Any:
    """Renumber hidden states of a vision tower: 0 is its input, -1 the output of its last layer."""
    if isinstance(value, list | tuple):
        return type(value)(_states_left(state, kept, count) for state in value)
    after = sum(layer < (value + count + 1 if value < 0 else value) for layer in kept)
    return after - len(kept) - 1 if value < 0 else after


DECODER_SETTINGS = {
    **dict.fromkeys(("attn_layer_indices", "cross_attention_layers", "full_attn_idxs"), _positions_left),
    **dict.fromkeys(("mlp_only_layers", "moe_layers", "no_rope_layer_indices", "rope_scaling_layers"), _positions_left),
    "kv_source_layers": _sources_left,
    **dict.fromkeys(("first_k_dense_replace", "max_window_layers"), _first_left),
    **dict.fromkeys(("moe_layer_start_index", "num_dense_layers"), _first_left),
    "moe_layer_end_index": _last_left,
}
TOWER_SETTINGS = {
    **dict.fromkeys(("vision_feature_layer", "vision_feature_layers", "intermediate_layers_indices"), _states_left),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), _positions_left),
}
"""Settings of configurations and modules that depend on positions of layers, and how each changes with them."""

REPLACEMENTS = (".removed_before.", ".removed_after.", ".linear_skip.")
"""Parts of the names of modules that replace removed units, see `modeling_das_adapters`."""

NOT_BY_LAYER = ("_token_id", "_token_ids", "_multipliers", "_section", "architectures")
"""Ends of the names of lists that are not by layer; any other list as long as the decoder is."""

UNCHECKED = ("store_full_length_kv", "first_kv_shared_layer_idx")
"""Attributes about sharing keys and values with later layers, which models that are supported do not do."""


def prune(model: Any, mask: Sequence[bool] | np.ndarray, vision_mask: Sequence[bool] | np.ndarray | None = None) -> Any:
    """Delete the layers that a mask skips, and return the model, which can then be saved with `save_pretrained`.

    Args:
        model: A model of transformers; it is changed.
        mask: (number of decoder layers,) bool, True = delete; `VLM.layer_mask` makes one of an environment's mask.
        vision_mask: (number of vision layers,) bool, True = delete; None = keep all.

    Raises:
        ValueError: A mask of another shape, one that leaves nothing, or layers that cannot be deleted.

    Example:
        >>> import transformers as t
        >>> model = t.LlamaForCausalLM(t.LlamaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=9))
        >>> prune(model, [False, True, False]).config.num_hidden_layers
        2
    """
    removed = _positions(mask, len(find_decoder(model).layers), "mask")
    removed_vision = []
    if vision_mask is not None:
        removed_vision = _positions(vision_mask, len(find_vision_tower(model).layers), "vision_mask")
    check_reloads(delete_layers(share_copy(model), removed, removed_vision))  # before anything of the model is changed
    return delete_layers(model, removed, removed_vision)


def _positions(mask: Sequence[bool] | np.ndarray, count: int, name: str) -> list[int]:
    array = np.asarray(mask)
    if array.shape != (count,) or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"Invalid `{name}`: got shape {array.shape}, expected {count} bools, one for each layer. `VLM.layer_mask` makes "
            "them of an environment's mask."
        )
    return np.flatnonzero(array).tolist()


def pruned_copy(vlm: VLM, mask: Sequence[bool] | np.ndarray) -> VLM:
    """Return a model without the skipped layers; it shares every parameter that is left with the full one."""
    removed = vlm.removed_layers(mask)
    model = delete_layers(share_copy(vlm.model), removed, vlm.removed_layers(mask, IMAGE))
    if parts := vlm.removed_parts(mask):
        kept = [place for place in range(len(vlm.stack.layers)) if place not in removed]
        remove_parts(model, {kept.index(place): kind for place, kind in parts.items()})
    check_reloads(model)
    smaller = type(vlm)(model, capabilities=pruned_capabilities(vlm))
    smaller.freeze()
    return smaller


def pruned_capabilities(vlm: VLM) -> Any:
    """Return the capabilities of a model from which layers were removed: the kind of its last layer is not known."""
    return dataclasses.replace(vlm.capabilities, tower=None, supports_kv_only_last_layer=False)


def check_reloads(model: Any) -> None:
    """Raise ValueError for a model that its configuration does not describe, since it would be another one when reloaded."""
    difference = reload_difference(model)
    if difference is not None:
        raise ValueError(
            f"{type(model).__name__} without these layers would not load again as it was: {difference}. Use another mask."
        )


def draw_mask(vlm: VLM, mask: Sequence[bool] | np.ndarray) -> str:
    """Draw which layers a mask removes, in a line, `■■□■`, vision layers first; `A` has its attention left, `M` its MLP."""
    stacks = [(JOINT, vlm.stack)] if vlm.tower is None else [(IMAGE, vlm.tower.stack), (JOINT, vlm.stack)]
    signs = {"layer": "□", "mlp": "A", "attention": "M"}
    words = []
    for stream, stack in stacks:
        kinds = vlm.skipped_kinds(mask, stream)
        words.append("".join(signs.get(kinds.get(place, ""), "■") for place in range(len(stack.layers))))
    return " ".join(words)


def decoder_path(vlm: VLM) -> str:
    """Return the dotted name of the list of decoder layers in `vlm.model`."""
    return module_path(vlm.model, vlm.stack.layers)


def full_model_with_parameters(full: VLM, smaller: VLM, mask: np.ndarray) -> VLM:
    """Return the full model, to be masked, with the parameters of its `pruned_copy` under that mask, trained or not."""
    model = share_copy(full.model)
    places = {decoder_path(full): full.removed_layers(mask)}
    if full.tower is not None:
        places[module_path(full.model, full.tower.stack.layers)] = full.removed_layers(mask, IMAGE)
    whole: dict[str, Any] = {}
    for path, removed in places.items():  # the same places as in the smaller model, for a while
        layers: Any = model.get_submodule(path)
        if len(smaller.model.get_submodule(path)) < len(layers):
            whole[path] = layers
            model.set_submodule(path, nn.ModuleList(layer for place, layer in enumerate(layers) if place not in removed))
    for name, module in smaller.model.named_modules():
        is_replacement = any(part in f"{name}." for part in REPLACEMENTS)
        if module._parameters and not is_replacement:
            model.get_submodule(name)._parameters.update(module._parameters)
    for path, layers in whole.items():
        model.set_submodule(path, layers)
    return type(full)(model, full.unit_kind, capabilities=full.capabilities)


def delete_layers(model: Any, removed: Collection[int], removed_vision: Collection[int] = ()) -> Any:
    """Delete layers by position, from the model and its configuration; the model is changed and returned."""
    stack = find_decoder(model)
    count, kept = _delete_modules(stack, removed, "decoder")
    modules = list(stack.owner.modules())
    for config in _configs_of(modules, model.config.get_text_config(decoder=True)):
        if getattr(config, "num_hidden_layers", None) == count:
            _renumber(config, DECODER_SETTINGS, kept, count)
            _keep_entries(config, kept, count, lambda name, _: not name.endswith(NOT_BY_LAYER))
            config.num_hidden_layers = len(kept)
            own = vars(config).get("_heterogeneity_spec")  # settings of single layers
            if own is not None:
                settings = own.per_layer_overrides.items()
                config.per_layer_config = {kept.index(place): dict(value) for place, value in settings if place in kept}
    for module in modules:
        _renumber(module, DECODER_SETTINGS, kept, count)
        _drop_layer_types(module)
    # such as Molmo 2's kinds of rotary embeddings
    _keep_entries(stack.owner, kept, count, lambda _, value: all(isinstance(kind, str) for kind in value))
    if removed_vision:
        delete_vision_layers(model, removed_vision)
    return model


def delete_vision_layers(model: Any, removed: Collection[int]) -> None:
    """Delete vision layers, as `delete_layers` does decoder layers."""
    count, kept = _delete_modules(find_vision_tower(model), removed, "vision")
    configs = _configs_of(model.get_encoder(modality="image").modules())
    for config in configs:
        counted = next((name for name in LAYER_COUNTS if getattr(config, name, None) == count), None)
        if counted:  # only lists that speak of layers: sizes of images may be as long
            _keep_entries(config, kept, count, lambda name, _: "layer" in name and name not in TOWER_SETTINGS)
            setattr(config, counted, len(kept))
    for part in {id(part): part for part in (*model.modules(), *configs, model.config)}.values():
        _renumber(part, TOWER_SETTINGS, kept, count)


def remove_parts(model: Any, removed: Mapping[int, str]) -> Any:
    """Remove attentions or MLPs by position of their layer, note that in the configuration, and return the changed model.

    `stack.note_layer_parts` has to have noted what its layers consist of.
    """
    stack = find_decoder(model)
    config = model.config.get_text_config(decoder=True)
    parts: dict[str, Any] = {"layers": module_path(model, stack.layers)}
    parts |= {kind: {} for kind in PART_NAMES}
    for place, layer in enumerate(stack.layers):
        for kind, names in PART_NAMES.items():
            if kind == "attention" or removed.get(place) == kind:  # the cache slots of all attentions are renumbered
                part: Any = child(layer, names)
                own_norms: Any = layer._das_norms
                norms = own_norms[kind] if removed.get(place) == kind else []
                name = child_name(layer, names)
                parts[kind][str(place)] = {"name": name, "outputs": part._das_outputs, "norms": norms}
    spec = vars(config).get("_heterogeneity_spec")  # settings of single layers that the model has by itself
    settings = {} if spec is None else copy.deepcopy(spec.per_layer_overrides)
    for place, kind in removed.items():
        settings.setdefault(place, {})["skip"] = [kind]
    config.per_layer_config = settings
    setattr(model.config, SUBLAYERS, parts)
    return remove_sublayers(model, parts)


def counting_attentions(model: Any) -> list[int]:
    """Return the positions of the decoder layers one of whose attentions has to stay: those of the first layer's kind."""
    attentions = [child(layer, ATTENTION_NAMES) for layer in find_decoder(model).layers]
    kinds = cache_kinds(model.config.get_text_config(decoder=True), attentions)
    return [place for place, kind in enumerate(kinds) if kind == kinds[0]]


def _delete_modules(stack: Stack, removed: Collection[int], kind: str) -> tuple[int, list[int]]:
    count = len(stack.layers)
    kept = [place for place in range(count) if place not in removed]
    if not kept:
        raise ValueError(f"The mask removes all {count} {kind} layers. Keep at least one.")
    setattr(stack.owner, stack.name, nn.ModuleList(stack.layers[place] for place in kept))
    for name in LAYER_COUNTS:
        if vars(stack.owner).get(name) == count:
            setattr(stack.owner, name, len(kept))
    for after, before in enumerate(kept):
        for module in stack.layers[after].modules():
            for name in ("layer_idx", "layer_number", "layer_id"):
                if getattr(module, name, None) == before:
                    setattr(module, name, after)
    return count, kept


def _configs_of(modules: Iterable[nn.Module], *more: Any) -> list[Any]:
    configs = [*more, *(getattr(module, "config", None) for module in modules)]
    return list({id(config): config for config in configs if config is not None}.values())


def _renumber(part: Any, settings: Mapping[str, Callable[..., Any]], kept: Sequence[int], count: int) -> None:
    for name in vars(part).keys() & settings.keys():
        value = getattr(part, name)
        if isinstance(value, int | list | tuple):  # None: the type's default, which is made from other settings
            setattr(part, name, settings[name](value, kept, count))


def _keep_entries(part: Any, kept: Sequence[int], count: int, by_layer: Callable[[str, Any], bool]) -> None:
    for name, value in list(vars(part).items()):
        if isinstance(value, list | tuple) and len(value) == count and by_layer(name, value):
            setattr(part, name, type(value)(value[place] for place in kept))


def _drop_layer_types(module: Any) -> None:
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    if kinds is None:
        return
    if hasattr(module, "has_sliding_layers"):
        module.has_sliding_layers = "sliding_attention" in kinds
    listed = getattr(module, "layer_types", None)
    if isinstance(listed, list) and len(set(listed)) == len(listed):  # such as those of Gemma 4's rotary embeddings
        module.layer_types = [kind for kind in listed if kind in kinds]


def reload_difference(model: Any) -> str | None:
    """Return how a model built from this one's configuration differs from this one; None if it does not."""
    try:
        config = type(model.config).from_dict(model.config.to_dict())  # as reading it does: some change what they are given
        with without_content():
            twin = type(model)(config)
            if hasattr(model.config, SUBLAYERS):
                remove_sublayers(twin, getattr(config, SUBLAYERS))
    except Exception as error:  # whatever a configuration raises that checks itself
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"its configuration is rejected ({lines[-1]})"
    # Shapes alone would miss what a layer takes from its position: a window, a scale, experts or none. Those are attributes.
    mine = dict(model.named_modules())
    its = dict(twin.named_modules())
    for name in sorted(mine.keys() | its.keys()):
        module = mine.get(name)
        other = its.get(name)
        if module is None or other is None:
            return f"the module {name} is {'missing' if other is None else 'new'}"
        if type(module) is not type(other):
            return f"{name} is a {type(other).__name__} instead of a {type(module).__name__}"
        known = _plain_settings(other)
        for key, value in _plain_settings(module).items():
            other_value = known.get(key, value)
            both = isinstance(value, float) and isinstance(other_value, float)
            same = math.isclose(value, other_value, rel_tol=1e-6) if both else value == other_value  # up to another dtype
            if key not in UNCHECKED and not same:
                return f"{name}.{key} is {other_value} instead of {value}"
    return None


def _plain_settings(module: Any) -> dict[str, Any]:
    """Return shapes of parameters, and attributes that are plain values, or lists of them, that training does not change."""
    found: dict[str, Any] = {"parameters": {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}}
    for name, value in vars(module).items():
        is_plain = isinstance(value, int | float | str | tuple)
        is_plain = is_plain or (isinstance(value, list) and all(isinstance(part, int | str) for part in value))
        if is_plain and not name.startswith("_") and name != "training" and "drop" not in name:
            found[name] = value
    return found
