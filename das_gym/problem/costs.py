"""MACs and parameters of every part of a model, counted from its sizes.

One example, every token a query in every stage, also in the last one: what the papers of this field
print as "FLOPs". (das_gym itself runs less: in the last stage only the pooled token is a query.)
MACs are multiply-accumulates of matrix products, attention's included; biases, LayerNorms, softmax
and activations are not counted.

`python -m adapt costs` prints the table of the DAS paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import nn

from das_gym.models.base import VLP
from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.vilt.model import ViLT, ViLTConfig

Mask = Sequence[bool] | np.ndarray


@dataclass(frozen=True, eq=False)
class Costs:
    """What a model costs, part by part; arrays are (n_layers,) int64, in mask order.

    Attributes:
        base_macs: Encoders, embeddings and poolers: what runs under every mask.
        head_macs: The task's head.
        layer_macs: Each layer without adapters.
        parallel_macs: Each layer's parallel adapters.
        skip_macs: Each layer's skip adapter.
        base_parameters: As `base_macs`.
        base_trainable: Those of `base_parameters` that train: poolers, token types, METER's first text token.
        head_parameters: As `head_macs`; all of them train.
        layer_parameters: As `layer_macs`.
        parallel_parameters: As `parallel_macs`, LayerNorms included; all of them train.
        skip_parameters: As `skip_macs`, LayerNorms included; all of them train.
    """

    base_macs: int
    head_macs: int
    layer_macs: np.ndarray
    parallel_macs: np.ndarray
    skip_macs: np.ndarray
    base_parameters: int
    base_trainable: int
    head_parameters: int
    layer_parameters: np.ndarray
    parallel_parameters: np.ndarray
    skip_parameters: np.ndarray

    @property
    def macs_full(self) -> int:
        """MACs of the pre-trained model and head: nothing skipped, no adapters. The baseline of every saving."""
        return self.base_macs + self.head_macs + int(self.layer_macs.sum())

    @property
    def parameters_full(self) -> int:
        """Parameters of the pre-trained model and head: nothing skipped, no adapters."""
        return self.base_parameters + self.head_parameters + int(self.layer_parameters.sum())

    def macs(self, mask: Mask) -> int:
        """MACs of the subnet with its adapters, under a (n_layers,) mask, True = skipped."""
        kept = self.layer_macs + self.parallel_macs
        return self.base_macs + self.head_macs + self._choose(mask, kept, self.skip_macs)

    def macs_saved(self, mask: Mask) -> float:
        """Share of `macs_full` that the subnet saves, at most 1; negative where its adapters cost more than it skips."""
        return 1 - self.macs(mask) / self.macs_full

    def parameters(self, mask: Mask) -> int:
        """Parameters of the pruned subnet and head."""
        kept = self.layer_parameters + self.parallel_parameters
        return self.base_parameters + self.head_parameters + self._choose(mask, kept, self.skip_parameters)

    def trainable_parameters(self, mask: Mask) -> int:
        """Those of `parameters(mask)` that train."""
        return (
            self.base_trainable + self.head_parameters + self._choose(mask, self.parallel_parameters, self.skip_parameters)
        )

    def _choose(self, mask: Mask, kept: np.ndarray, skipped: np.ndarray) -> int:
        array = np.asarray(mask, dtype=bool)
        if array.shape != kept.shape:
            raise ValueError(f"mask of shape {array.shape}: this model has {len(kept)} layers, give one bool each")
        return int(np.where(array, skipped, kept).sum())


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


def _check_length(text_tokens: int) -> None:
    if text_tokens < 1:
        raise ValueError(f"text_tokens={text_tokens}: a text has at least one token")


def meter_costs(config: METERConfig, text_tokens: int, num_answers: int | None = None) -> Costs:
    """Costs of METER, with its VQA head where `num_answers` is given.

    Args:
        config: Sizes.
        text_tokens: Length of the text.
        num_answers: Outputs of the VQA head; None leaves the head out.

    Raises:
        ValueError: a text without tokens.
    """
    _check_length(text_tokens)
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
    return Costs(
        base_macs=(image - 1) * pixels * config.vision_width
        + config.vision_layers * transformer_macs(config.vision_width, image)
        + config.text_layers * transformer_macs(config.text_width, text)
        + (text * config.text_width + image * config.vision_width) * width
        + 2 * width**2,
        head_macs=head_macs,
        layer_macs=np.repeat(np.array(per_stream, dtype=np.int64), layers),
        parallel_macs=tokens * 3 * adapter_macs(width, config.bottleneck),
        skip_macs=tokens * adapter_macs(width, config.skip_bottleneck),
        base_parameters=_meter_encoder_parameters(config) + trainable,
        base_trainable=trainable,
        head_parameters=head_parameters,
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
) -> Costs:
    """Costs of ViLT, with its VQA head where `num_answers` is given.

    Args:
        config: Sizes.
        text_tokens: Length of the text.
        num_answers: Outputs of the VQA head; None leaves the head out.
        image_tokens: Patches and the class token; None = those of a square image of `config.image_size`.
    """
    _check_length(text_tokens)
    image = config.image_tokens if image_tokens is None else image_tokens
    width, tokens = config.hidden_size, text_tokens + image
    pixels = 3 * config.patch_size**2
    head_macs, head_parameters = answer_head(width, 2 * width, num_answers)
    every = np.ones(config.num_layers, dtype=np.int64)
    trainable = linear(width, width) + (2 + 3) * width
    words = (config.vocab_size + config.max_positions) * width + 2 * width
    patches = linear(pixels, width) + width + (config.grid**2 + 1) * width
    return Costs(
        base_macs=(image - 1) * pixels * width + width**2,
        head_macs=head_macs,
        layer_macs=every * transformer_macs(width, tokens),
        parallel_macs=every * tokens * 2 * adapter_macs(width, config.bottleneck),
        skip_macs=every * tokens * adapter_macs(width, config.skip_bottleneck),
        base_parameters=words + patches + 2 * width + trainable,
        base_trainable=trainable,
        head_parameters=head_parameters,
        layer_parameters=every * transformer_parameters(width),
        parallel_parameters=every * 2 * adapter_parameters(width, config.bottleneck),
        skip_parameters=every * adapter_parameters(width, config.skip_bottleneck),
    )


def count_costs(vlp: VLP, text_tokens: int, head: nn.Module | None = None, passes: int = 1) -> Costs:
    """Costs of one example through a model, pruned or not, and any head made of linear layers.

    Args:
        vlp: METER, ViLT, or a model with a method `count_costs(text_tokens) -> Costs`.
        text_tokens: Length of the text.
        head: From pooled features to logits; None counts none. It runs once a pass, or once where its first layer
            reads all passes side by side.
        passes: How often the model runs for an example.

    Raises:
        TypeError: another model.
    """
    if isinstance(vlp, METER):
        costs = meter_costs(vlp.config, text_tokens)
    elif isinstance(vlp, ViLT):
        costs = vilt_costs(vlp.config, text_tokens)
    elif hasattr(vlp, "count_costs"):
        costs = cast(Any, vlp).count_costs(text_tokens)
    else:
        raise TypeError(
            f"the costs of a {type(vlp).__name__} are not known; count METER or ViLT, or give it a method "
            "count_costs(text_tokens) that returns Costs"
        )
    if passes > 1:
        per_pass = ("base_macs", "layer_macs", "parallel_macs", "skip_macs")
        costs = replace(costs, **{name: getattr(costs, name) * passes for name in per_pass})
    if head is None:
        return costs
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)]
    runs = passes if layers and layers[0].in_features == vlp.feature_size else 1
    macs = runs * sum(layer.in_features * layer.out_features for layer in layers)
    return replace(costs, head_macs=macs, head_parameters=sum(p.numel() for p in head.parameters()))


def paper_table(image_size: int = 384, text_tokens: int = 40, num_answers: int = 3129) -> list[dict[str, float | str]]:
    """The paper's table: METER-base without adapters, with them, and DAS with four layers skipped.

    Args:
        image_size: Side of the image, pixels.
        text_tokens: Length of the text.
        num_answers: Outputs of the VQA head.

    Returns:
        `what`, `macs`, `change` (MACs, against no adapters), `percent` (the same), and the parameters of the
        adapters that run, without (`adapters`) and with (`adapters_and_norms`) their LayerNorms.
    """
    config = METERConfig(image_size=image_size)
    costs = meter_costs(config, text_tokens, num_answers)
    layers, width = config.fusion_layers, config.hidden_size
    rows: list[dict[str, float | str]] = [
        {"what": "no adapters", "macs": costs.macs_full, "change": 0, "percent": 0.0, "adapters": 0, "adapters_and_norms": 0}
    ]
    for text, image in ((0, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)):
        mask = np.array([i < text for i in range(layers)] + [i < image for i in range(layers)])
        with_norms = int(np.where(mask, costs.skip_parameters, costs.parallel_parameters).sum())
        norms = int(np.where(mask, 1, 3).sum()) * 2 * width
        macs = costs.macs(mask)
        rows.append(
            {
                "what": f"DAS, {text} text + {image} image" if text + image else "adapters, no skipping",
                "macs": macs,
                "change": macs - costs.macs_full,
                "percent": -100 * costs.macs_saved(mask),
                "adapters": with_norms - norms,
                "adapters_and_norms": with_norms,
            }
        )
    return rows
