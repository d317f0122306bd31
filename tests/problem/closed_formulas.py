"""The costs of METER and ViLT by closed formulas of their sizes: witnesses for what counting finds.

As the papers count: every token a query in every stage, also in the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.network import ViLTConfig


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias; its MACs for a token are `inputs * outputs`."""
    return inputs * outputs + outputs


def adapter_macs(width: int, bottleneck: int) -> int:
    """MACs of an adapter for a token."""
    return 2 * width * bottleneck


def adapter_parameters(width: int, bottleneck: int) -> int:
    """Parameters of an adapter, its LayerNorm included; 0 for none."""
    return linear(width, bottleneck) + linear(bottleneck, width) + 2 * width if bottleneck else 0


def transformer_macs(width: int, tokens: int) -> int:
    """MACs of self-attention and a feed-forward of four times the width."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def transformer_parameters(width: int) -> int:
    """Parameters of self-attention, a feed-forward of four times the width, and two LayerNorms."""
    return 4 * linear(width, width) + linear(width, 4 * width) + linear(4 * width, width) + 4 * width


def answer_head(features: int, hidden: int, answers: int | None) -> tuple[int, int]:
    """MACs and parameters of Linear, LayerNorm, GELU, Linear; 0 and 0 without answers."""
    if answers is None:
        return 0, 0
    return features * hidden + hidden * answers, linear(features, hidden) + 2 * hidden + linear(hidden, answers)


def with_totals(head_macs: int, head_parameters: int, base_parameters: int, **fields: Any) -> dict[str, Any]:
    """Fields of `Costs`, with those of the whole model without adapters."""
    macs = fields["base_macs"] + head_macs + fields["layer_macs"].sum()
    parameters = base_parameters + head_parameters + fields["layer_parameters"].sum()
    return {**fields, "macs_full": macs, "parameters_full": parameters}


def meter_costs(config: METERConfig, text_tokens: int, num_answers: int | None = None) -> dict[str, Any]:
    """Costs of METER, with its VQA head where `num_answers` is given.

    Args:
        config: Sizes.
        text_tokens: Length of the text.
        num_answers: Outputs of the VQA head; None leaves the head out.

    Raises:
        ValueError: a text without tokens.
    """
    text, image, width = text_tokens, config.image_tokens, config.hidden_size
    pixels = 3 * config.patch_size**2
    head_macs, head_parameters = answer_head(2 * width, 2 * width, num_answers)
    layers = config.fusion_layers
    per_stream = [
        transformer_macs(width, own) + 2 * own * width**2 + 2 * other * width**2 + 2 * own * other * width
        for own, other in ((text, image), (image, text))
    ]
    tokens = np.repeat(np.array([text, image], dtype=np.int64), layers)
    every = np.ones(2 * layers, dtype=np.int64)
    trainable = 2 * linear(width, width) + 3 * width + width
    return with_totals(
        head_macs,
        head_parameters,
        base_macs=(image - 1) * pixels * config.vision_width
        + config.vision_layers * transformer_macs(config.vision_width, image)
        + config.text_layers * transformer_macs(config.text_width, text)
        + (text * config.text_width + image * config.vision_width) * width
        + 2 * width**2,
        layer_macs=np.repeat(np.array(per_stream, dtype=np.int64), layers),
        parallel_macs=tokens * 3 * adapter_macs(width, config.bottleneck),
        skip_macs=tokens * adapter_macs(width, config.skip_bottleneck),
        base_parameters=_meter_encoder_parameters(config) + trainable,
        layer_parameters=every * (transformer_parameters(width) + 4 * linear(width, width) + 2 * width),
        parallel_parameters=every * 3 * adapter_parameters(width, config.bottleneck),
        skip_parameters=every * adapter_parameters(width, config.skip_bottleneck),
    )


def _meter_encoder_parameters(config: METERConfig) -> int:
    """Parameters of both encoders and of the projections to the fusion layers: all frozen."""
    vision, text = config.vision_width, config.text_width
    patches = 3 * config.patch_size**2 * vision
    image = patches + vision + config.image_tokens * vision + 4 * vision
    words = (config.vocab_size + config.max_positions + 1) * text + 2 * text
    blocks = config.vision_layers * transformer_parameters(vision) + config.text_layers * transformer_parameters(text)
    return image + words + blocks + linear(vision, config.hidden_size) + linear(text, config.hidden_size)


def vilt_costs(
    config: ViLTConfig, text_tokens: int, num_answers: int | None = None, image_tokens: int | None = None
) -> dict[str, Any]:
    """Costs of ViLT, with its VQA head where `num_answers` is given.

    Args:
        config: Sizes.
        text_tokens: Length of the text.
        num_answers: Outputs of the VQA head; None leaves the head out.
        image_tokens: Patches and the class token; None = those of a square image of `config.image_size`.
    """
    image = config.image_tokens if image_tokens is None else image_tokens
    width, tokens = config.hidden_size, text_tokens + image
    pixels = 3 * config.patch_size**2
    head_macs, head_parameters = answer_head(width, 2 * width, num_answers)
    every = np.ones(config.num_layers, dtype=np.int64)
    trainable = linear(width, width) + (2 + 3) * width
    words = (config.vocab_size + config.max_positions) * width + 2 * width
    patches = linear(pixels, width) + width + (config.grid**2 + 1) * width
    return with_totals(
        head_macs,
        head_parameters,
        base_macs=(image - 1) * pixels * width + width**2,
        layer_macs=every * transformer_macs(width, tokens),
        parallel_macs=every * tokens * 2 * adapter_macs(width, config.bottleneck),
        skip_macs=every * tokens * adapter_macs(width, config.skip_bottleneck),
        base_parameters=words + patches + 2 * width + trainable,
        layer_parameters=every * transformer_parameters(width),
        parallel_parameters=every * 2 * adapter_parameters(width, config.bottleneck),
        skip_parameters=every * adapter_parameters(width, config.skip_bottleneck),
    )
