"""A model of transformers some of whose decoder layers have lost their attention or their MLP.

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

loads it from a folder that holds this file, with torch and transformers alone. A layer without attention computes `h +
MLP(norm(h))`, one without MLP `h + attention(norm(h))`.

The decoder's configuration lists the removed parts in `per_layer_config`, as `skip: ["attention"]` or `skip: ["mlp"]` for a
layer. transformers reads and writes that, but its models ignore it: this file removes the parts.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import DynamicCache

SUBLAYERS = "sublayer_parts"
"""Key of config.json: what the parts of a layer are called, see `remove_sublayers`."""


class RemovedPart(nn.Module):
    """Replaces a removed attention or MLP: it returns zeros, so that the residual connection passes its input on.

    `outputs` is the number of outputs of the part; 0 = a tensor alone.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the shape of the input, without memory."""
        hidden = args[0] if args else kwargs["hidden_states"]
        zeros = hidden.new_zeros(()).expand_as(hidden)
        return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros


def remove_sublayers(model: Any, parts: Mapping[str, Any]) -> Any:
    """Remove what the decoder's configuration skips from a model, and return it.

    Args:
        model: A model of transformers that has all parts.
        parts: `layers`: the name of its list of decoder layers; `attention` and `mlp`: by position of a layer, `name`: what
            the layer calls that part, `outputs`: see `RemovedPart`, `norms`: the norms that serve that part alone.
    """
    config = model.config.get_text_config(decoder=True)
    removed = []
    attentions = []
    for place, layer in enumerate(model.get_submodule(parts["layers"])):
        skip = getattr(config.per_layer_config[place], "skip", ())
        removed += [(layer, parts[kind][str(place)]) for kind in skip]
        attention = getattr(layer, parts["attention"][str(place)]["name"])
        attentions.append((attention, "attention" not in skip))
    renumber_cache_slots(config, attentions)
    for layer, part in removed:
        setattr(layer, part["name"], RemovedPart(part["outputs"]))
        for norm in part["norms"]:
            setattr(layer, norm, nn.Identity())
    return model


def renumber_cache_slots(config: Any, attentions: list[tuple[Any, bool]]) -> None:
    """Give kept attentions the first cache slots of their kind, in order; one of the first layer's kind has to be kept.

    transformers takes the number of cached tokens from the first slot of a kind (full or sliding attention): empty, it would
    make positions and masks of left-padded batches wrong. `attentions` are those of each layer, and whether they are kept.
    """
    kinds = cache_kinds(config, [attention for attention, _ in attentions])
    free = {kind: [slot for slot, other in enumerate(kinds) if other == kind] for kind in kinds}
    for (attention, kept), kind in zip(attentions, kinds, strict=True):
        if not kept:
            continue
        before = attention.layer_idx
        after = free[kind].pop(0)
        for module in attention.modules():
            if getattr(module, "layer_idx", None) == before:
                module.layer_idx = after
    if free[kinds[0]][:1] == [0]:
        raise ValueError(
            "No attention of the first layer's kind is left, from whose cache transformers takes the number of tokens. Keep "
            "at least one."
        )


def cache_kinds(config: Any, attentions: list[Any]) -> list[Any]:
    """Return the kind of each attention's cache slot: attentions of one kind can take each other's slots."""
    slots = DynamicCache(config=config).layers
    return [(type(slots[place]).__name__, type(attention).__name__) for place, attention in enumerate(attentions)]
