"""A subnet and its head in transformers' conventions: what a family says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from das_gym.models.adapters import parallel_adapters
from das_gym.models.base import VLP

LAYER, ADAPTER, NOTHING = "layer", "adapter", "nothing"
"""What stands in a layer's place."""

DAS_GYM = "das_gym"
"""Key of config.json under which a folder says what it is to das_gym."""


@dataclass(frozen=True)
class PortableHead:
    """A head that is one linear layer, or Linear, LayerNorm, GELU, Linear.

    Attributes:
        tensors: `0.weight`, `0.bias` and, where it has an inside, those of `1` and `3`.
        width: Width inside; None for one linear layer.
        num_labels: Logits.
        num_images: How many images' features it reads, side by side.
    """

    tensors: Mapping[str, Tensor]
    width: int | None
    num_labels: int
    num_images: int


@dataclass(frozen=True)
class Portable:
    """A subnet and its head as transformers reads them.

    Attributes:
        config: Content of config.json, but for labels and what das_gym adds.
        tensors: By the names that the class gives them.
        image_processor: Content of preprocessor_config.json.
        model: The class that loads it, "module:name".
        code: Module whose file the folder needs; None where transformers has the class.
        notes: What a reader of the folder has to know, a sentence each.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    image_processor: Mapping[str, Any]
    model: str
    code: str | None = None
    notes: tuple[str, ...] = ()


ToPortable = Callable[[Any, PortableHead], Portable]
"""Of a family: from a pruned model of it, and a head."""


def portable_head(head: nn.Module, feature_size: int) -> PortableHead:
    """The head, if it is of a kind that the written code knows.

    Args:
        head: What a task built.
        feature_size: Width of the features of one image.

    Raises:
        ValueError: another kind of head.
    """
    parts: list[Any] = [p for p in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(p, nn.Flatten)]
    kinds = [type(part) for part in parts]
    known = kinds == [nn.Linear] or (kinds == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear] and _usual(parts))
    if not known or parts[0].in_features % feature_size:
        raise ValueError(
            f"this head cannot be exported: it is {', '.join(kind.__name__ for kind in kinds)}; known are Linear, and "
            f"Linear, LayerNorm, GELU, Linear with their usual settings, that read {feature_size} features of each image"
        )
    tensors = {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.state_dict().items()}
    width = parts[0].out_features if len(parts) > 1 else None
    return PortableHead(tensors, width, parts[-1].out_features, parts[0].in_features // feature_size)


def _usual(parts: Sequence[Any]) -> bool:
    first, norm, gelu, last = parts
    biased = first.bias is not None and last.bias is not None
    return biased and norm.eps == nn.LayerNorm(1).eps and gelu.approximate == "none"


def layer_kinds(vlp: VLP) -> tuple[str, ...]:
    """`LAYER`, `ADAPTER` or `NOTHING` for each layer of a pruned model.

    Raises:
        ValueError: nothing was pruned.
    """
    if vlp.pruned_mask is None:
        raise ValueError("this model is not pruned; call vlp.prune(mask) first (a mask of zeros keeps every layer)")
    found = []
    for index, skipped in enumerate(vlp.pruned_mask.tolist()):
        nothing = isinstance(vlp.skippable(index).skip_adapter, nn.Identity)
        found.append(LAYER if not skipped else NOTHING if nothing else ADAPTER)
    return tuple(found)


def parallel_bottleneck(vlp: VLP, built: int) -> int:
    """Width of the parallel adapters that a model still has: as it was built, or 0 where they were taken out."""
    return built if parallel_adapters(vlp) else 0


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a pruned model, without the word that tells a layer from its skip adapter."""
    return {re.sub(r"(\.\d+)\.(?:layer|skip_adapter)\.", r"\1.", name, count=1): t for name, t in tensors.items()}
