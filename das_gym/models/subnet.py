"""What exported METER and ViLT models have in common: configuration, head and loss.

Exported folders carry a copy of this file, so it imports torch and transformers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class SubnetConfig(PreTrainedConfig):
    """Sizes of a model, which layers it lacks, and its head.

    Args:
        sizes: Fields of `METERConfig` or `ViLTConfig`.
        mask: One entry a layer, 1 = skipped: a skip adapter, or nothing, takes its place. Empty keeps all layers.
        num_images: Images of an example; the head reads the features of all, next to each other.
        head_width: Width inside the head; None = one linear layer.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any] | None = None,
        mask: Sequence[int] = (),
        num_images: int = 1,
        head_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.sizes = dict(sizes or {})
        self.mask = list(mask)
        self.num_images, self.head_width = num_images, head_width
        super().__init__(**kwargs)


class Subnet(PreTrainedModel):
    """A model that lacks some layers, with its head."""

    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def make_slot(self, index: int, layer: type[nn.Module], skip: Any, sizes: Any) -> nn.ModuleDict:
        """Return a layer or its replacement, under the name that it has in das_gym."""
        if self.config.mask and self.config.mask[index]:
            return nn.ModuleDict({"skip_adapter": skip(sizes.hidden_size, sizes.skip_bottleneck)})
        return nn.ModuleDict({"layer": layer(sizes)})

    @staticmethod
    def run_slot(slot: Any, pooled_only: bool, x: Tensor, *others: Tensor | None) -> Tensor:
        """Run a layer or its replacement; a skip adapter reads the first argument alone."""
        if "layer" in slot:
            return slot["layer"](x, *others, pooled_only)
        return slot["skip_adapter"](x[:, :1] if pooled_only else x)

    def build_head(self, features: int) -> None:
        """Add the classifier, which reads `features` numbers of each image."""
        features, inside = features * self.config.num_images, self.config.head_width
        parts: list[nn.Module] = [nn.Linear(features, inside or self.config.num_labels)]
        if inside:
            parts += [nn.LayerNorm(inside), nn.GELU(), nn.Linear(inside, self.config.num_labels)]
        self.classifier = nn.Sequential(*parts)

    def split_images(self, images: Tensor | None) -> Sequence[Any]:
        """Return a tensor for each image of an example; None for each if there is none."""
        if self.config.num_images == 1 or images is None:
            return (images,) * self.config.num_images
        return images.unbind(1)

    def classify(self, features: Sequence[Tensor], labels: Tensor | None, return_dict: bool) -> Any:
        """Return logits, and with labels the mean loss in nats; binary cross-entropy is summed over labels."""
        logits, loss = self.classifier(torch.cat(list(features), dim=-1)), None
        if labels is not None and labels.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[0]
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()
