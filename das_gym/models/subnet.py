"""What exported METER and ViLT models have in common: configuration, head and loss.

Exported folders carry a copy of this file, so it imports torch and transformers alone.
"""

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

    sizes: dict[str, Any] | None = None
    mask: list[int] | tuple[int, ...] = ()
    num_images: int = 1
    head_width: int | None = None


class Subnet(PreTrainedModel):
    """A METER or ViLT model whose skipped layers are adapters, with the head of a task, as transformers loads it."""

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
        """Return the (batch, tokens, hidden_size) output of a layer or its replacement, which reads `x` alone."""
        if "layer" in slot:
            return slot["layer"](x, *others, pooled_only)
        return slot["skip_adapter"](x[:, :1] if pooled_only else x)

    def build_head(self, features: int) -> None:
        """Add the classifier, which reads `features` numbers of each image."""
        features = features * self.config.num_images
        inside = self.config.head_width
        parts: list[nn.Module] = [nn.Linear(features, inside or self.config.num_labels)]
        if inside:
            parts += [nn.LayerNorm(inside), nn.GELU(), nn.Linear(inside, self.config.num_labels)]
        self.classifier = nn.Sequential(*parts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute logits of pairs of a text and its image, or images.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: As `input_ids`, 1 = a real token; None = all are.
            pixel_values: (batch, 3, height, width) float; (batch, num_images, 3, height, width) if an example has several.
            pixel_mask: ViLT's: as `pixel_values` without channels, 0 = padding; None = where all channels are 0.
            labels: (batch, num_labels) float for binary cross-entropy, (batch,) int64 for cross-entropy; None = no loss.
            return_dict: Whether to return a `SequenceClassifierOutput`, or a tuple.
            **kwargs: What else a tokenizer returns; ignored.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing: each text needs its image. AutoImageProcessor makes them")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text = self.read_text(input_ids, attention_mask)
        count = self.config.num_images
        features = []
        for number in range(count):
            image = pixel_values if count == 1 else pixel_values[:, number]
            mask = pixel_mask if count == 1 or pixel_mask is None else pixel_mask[:, number]
            features.append(self.fuse(text, attention_mask.bool(), image, mask, 1 + number))
        logits = self.classifier(torch.cat(features, dim=-1))
        loss = None
        if labels is not None and labels.is_floating_point():  # summed over labels
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[0]
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()

    def read_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (batch, tokens, hidden_size) of texts, which all images of an example share."""
        raise NotImplementedError

    def fuse(self, text: Tensor, attend: Tensor, pixels: Tensor, pixel_mask: Tensor | None, image_type: int) -> Tensor:
        """Return (batch, features) of texts, of which (batch, tokens) bool `attend` are real, with one image each."""
        raise NotImplementedError
