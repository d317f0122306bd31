"""METER without the layers that its task does not need: configuration, model and image processor.

This file needs torch and transformers alone, and lies beside the weights it was written for:

    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    texts = tokenizer(["what is left of the cube?"], padding=True, truncation=True, return_tensors="pt")
    logits = model(**texts, **image_processor(pictures, return_tensors="pt")).logits

Source: METER (arXiv 2111.02387) under DAS (arXiv 2309.01479): CLIP-ViT and RoBERTa encoders, then stages of a text and an
image fusion layer side by side, each of which reads both streams as they were before the stage. A skipped layer's place is
taken by a bottleneck adapter, or by nothing; beside the sub-layers of the others there may be adapters, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import SequenceClassifierOutput

BICUBIC = 3
"""What pillow calls it."""


class MeterSubnetConfig(PreTrainedConfig):
    """Sizes of the model, and which layers are left.

    Args:
        vision_config, text_config: Of the CLIP-ViT and the RoBERTa encoder.
        hidden_size: Width of the fusion layers.
        num_attention_heads: Their attention heads.
        text_layers, image_layers: What each stage has for the stream: `layer`, `adapter` or `nothing`.
        bottleneck: Width of the adapters beside the sub-layers of a layer; 0 = there are none.
        skip_bottleneck: Width of the adapters that stand in for a layer.
        num_images: Images that an example has; the head reads the features of all, side by side.
        head_width: Width inside the head; None = one linear layer.
        hidden_dropout_prob: Dropout of the fusion layers, 0..1; in train mode only.
        layer_norm_eps: Of the fusion layers' LayerNorms.
    """

    model_type = "meter_subnet"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": RobertaConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | CLIPVisionConfig | None = None,
        text_config: dict[str, Any] | RobertaConfig | None = None,
        hidden_size: int = 768,
        num_attention_heads: int = 12,
        text_layers: Sequence[str] = ("layer",) * 6,
        image_layers: Sequence[str] = ("layer",) * 6,
        bottleneck: int = 96,
        skip_bottleneck: int = 288,
        num_images: int = 1,
        head_width: int | None = 1536,
        hidden_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        **kwargs: Any,
    ) -> None:
        self.vision_config = part(CLIPVisionConfig, vision_config)
        self.text_config = part(RobertaConfig, text_config)
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.text_layers, self.image_layers = list(text_layers), list(image_layers)
        self.bottleneck, self.skip_bottleneck = bottleneck, skip_bottleneck
        self.num_images, self.head_width = num_images, head_width
        self.hidden_dropout_prob, self.layer_norm_eps = hidden_dropout_prob, layer_norm_eps
        super().__init__(**kwargs)


def part(kind: type[Any], given: Any) -> Any:
    """The config of an encoder, as it is given or from its fields."""
    return given if isinstance(given, kind) else kind(**(given or {}))


class Attention(nn.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, config: MeterSubnetConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.hidden_dropout_prob
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, n, hidden_size) of the tokens `x` (batch, n, hidden_size) over what `mask` shows of `y`."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(y), self.value(y))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Adapter(nn.Module):
    """`up(relu(down(LayerNorm(x))))`; with a bottleneck of 0, nothing."""

    def __init__(self, config: MeterSubnetConfig, bottleneck: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        if bottleneck:
            self.norm = nn.LayerNorm(config.hidden_size)
            self.down = nn.Linear(config.hidden_size, bottleneck)
            self.up = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, hidden_size), or a zero where there is none."""
        return self.up(torch.relu(self.down(self.norm(x)))) if self.bottleneck else x.new_zeros(())


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the other stream, feed-forward; post-LayerNorm, an adapter beside each."""

    def __init__(self, config: MeterSubnetConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.self_attention, self.cross_attention = Attention(config), Attention(config)
        self.feed_in, self.feed_out = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(size, config.layer_norm_eps) for _ in range(3))
        self.self_adapter, self.cross_adapter, self.feed_adapter = (Adapter(config, config.bottleneck) for _ in range(3))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, all_x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, first: bool) -> Tensor:
        """New hidden vectors of a stream `all_x` beside `y`; with `first`, those of the first token alone."""
        x = all_x[:, :1] if first else all_x
        x = self.self_norm(self.dropout(self.self_attention(x, all_x, x_mask)) + x + self.self_adapter(x))
        x = self.cross_norm(self.dropout(self.cross_attention(x, y, y_mask)) + x + self.cross_adapter(x))
        return self.feed_norm(self.dropout(self.feed_out(F.gelu(self.feed_in(x)))) + x) + self.feed_adapter(x)


class SkipAdapter(Adapter):
    """What runs in the place of a skipped layer: an adapter plus its input, or the input alone."""

    def forward(self, x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, first: bool) -> Tensor:  # type: ignore[override]
        """As a layer; only `x` is read."""
        x = x[:, :1] if first else x
        return x + super().forward(x)


def stack(config: MeterSubnetConfig, kinds: Sequence[str]) -> nn.ModuleList:
    """The layers of a stream."""
    bottlenecks = {"adapter": config.skip_bottleneck, "nothing": 0}
    return nn.ModuleList(
        FusionLayer(config) if kind == "layer" else SkipAdapter(config, bottlenecks[kind]) for kind in kinds
    )


class MeterSubnet(PreTrainedModel):
    """The model and its head.

    Args:
        config: Its sizes.
    """

    config_class = MeterSubnetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: MeterSubnetConfig) -> None:
        super().__init__(config)
        size, vision, text = config.hidden_size, config.vision_config, config.text_config
        self.image_encoder = CLIPVisionModel(vision)
        self.text_encoder = RobertaModel(text, add_pooling_layer=False)
        self.text_transform = nn.Linear(text.hidden_size, size)
        self.image_transform = nn.Linear(vision.hidden_size, size)
        self.first_text_token = nn.Parameter(torch.zeros(1, 1, size))
        self.token_types = nn.Embedding(3, size)
        self.text_layers, self.image_layers = stack(config, config.text_layers), stack(config, config.image_layers)
        self.text_pooler, self.image_pooler = nn.Linear(size, size), nn.Linear(size, size)
        features, inside = 2 * size * config.num_images, config.head_width
        head: list[nn.Module] = [nn.Linear(features, inside or config.num_labels)]
        head += [nn.LayerNorm(inside), nn.GELU(), nn.Linear(inside, config.num_labels)] if inside else []
        self.classifier = nn.Sequential(*head)
        self.post_init()

    def fuse(self, text: Tensor, text_mask: Tensor, pixel_values: Tensor, token_type: int) -> Tensor:
        """(batch, 2 * hidden_size) features of encoded texts and of an image each."""
        image = self.image_encoder(pixel_values).last_hidden_state
        image = self.image_transform(self.image_encoder.post_layernorm(image))
        place = torch.arange(text.shape[1], device=text.device)[:, None]
        text = torch.where(place == 0, self.first_text_token, text) + self.token_types.weight[0]
        image = image + self.token_types.weight[token_type]
        last = len(self.text_layers) - 1
        for number, (text_layer, image_layer) in enumerate(zip(self.text_layers, self.image_layers, strict=True)):
            text, image = (
                text_layer(text, image, text_mask, None, number == last),
                image_layer(image, text, None, text_mask, number == last),
            )
        pooled = self.text_pooler(text[:, 0]), self.image_pooler(image[:, 0])
        return torch.tanh(torch.cat(pooled, dim=-1))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Logits of pairs of a text and its image, or images.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: As `input_ids`, 1 = a real token; None = all are.
            pixel_values: (batch, 3, size, size) float, or (batch, num_images, 3, size, size) where there are several.
            labels: (batch, num_labels) float for binary cross-entropy, (batch,) int64 for cross-entropy; None = no loss.
            return_dict: Whether to return a `SequenceClassifierOutput`, or a tuple.
            **kwargs: Whatever else a tokenizer gives; not read.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing: each text needs its image; AutoImageProcessor makes them")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text = self.text_transform(self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state)
        mask = attention_mask[:, None, None].bool()
        images = pixel_values.unbind(1) if self.config.num_images > 1 else (pixel_values,)
        features = [self.fuse(text, mask, image, 1 + number) for number, image in enumerate(images)]
        logits = self.classifier(torch.cat(features, dim=-1))
        loss = None if labels is None else self.loss(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over examples, nats; binary cross-entropy is summed over labels."""
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[0]
        return F.cross_entropy(logits, labels)


class MeterSubnetImageProcessor(BaseImageProcessor):
    """Shorter side to `size` pixels, the middle, less `image_mean`, over `image_std`.

    Args:
        size: Side of the square, pixels.
        image_mean, image_std: Of red, green and blue, 0..1.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 384,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)

    def __call__(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """`pixel_values` (batch, 3, size, size) float32 of one picture of pillow's, or of several."""
        pictures = images if isinstance(images, list | tuple) else [images]
        return BatchFeature({"pixel_values": np.stack([self.pixels(picture) for picture in pictures])}, return_tensors)

    def pixels(self, picture: Any) -> np.ndarray:
        """(3, size, size) float32 of a picture."""
        width, height = picture.size
        size, short = self.size, min(picture.size)
        width, height = size * width // short, size * height // short
        picture = picture.convert("RGB")
        if short != size:
            picture = picture.resize((width, height), BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        values = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        mean, std = np.array(self.image_mean, dtype=np.float32), np.array(self.image_std, dtype=np.float32)
        return ((values - mean) / std).transpose(2, 0, 1)
