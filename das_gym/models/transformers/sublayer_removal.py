"""Remove the attention or the MLP of decoder layers for good.

Such a model is saved with the code that loads it, see `own_code` and `modeling_removed_sublayers`. Layers that lose both
parts are removed by `layer_removal`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from das_gym.models.transformers.modeling_removed_sublayers import SUBLAYERS, cache_kinds, remove_sublayers
from das_gym.models.transformers.stack import ATTENTION_NAMES, PART_NAMES, child, child_name, find_decoder, path_of


def lacks_sublayers(model: Any) -> bool:
    """Return whether attentions or MLPs were removed from a model of transformers."""
    return hasattr(model.config, SUBLAYERS)


def remove_parts(model: Any, removed: Mapping[int, str]) -> Any:
    """Remove attentions or MLPs by position of their layer, note that in the configuration, and return the changed model.

    `stack.note_layer_parts` has to have noted what its layers consist of.
    """
    stack, config = find_decoder(model), model.config.get_text_config(decoder=True)
    parts: dict[str, Any] = {"layers": path_of(model, stack.layers)}
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
