"""What pre-training must know of each family, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain.losses import Features
from benchmarks.pretrain.tokenizer import SpecialTokens
from das_gym.models.base import VLP, State
from das_gym.shapes.scenes import IMAGE_SIZE

PATCH_SIZE = 16
HEADS = 4
TEXT_TOKENS = 64
"""Longest text of the mini models, in tokens."""


@dataclass(frozen=True)
class Pixels:
    """How a model reads pictures.

    Attributes:
        mean, std: Of its pixels, red, green and blue.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) pixels, 0..1, as the model reads them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class PretrainModel(Pixels):
    """A model as pre-training sees it.

    Attributes:
        build: From hidden size, vocabulary size, bottleneck and skip bottleneck to the mini model.
        initialise: Gives it its first weights.
        image_parts: The modules that the first part trains.
        early_patches: From the model and images to (batch, patches, hidden_size), for the first part.
        features: From the model and a batch to what the losses of the second part read.
        special_tokens: Of its tokenizer.
    """

    build: Callable[[int, int, int, int], VLP]
    initialise: Callable[[Any], None]
    image_parts: Callable[[Any], dict[str, nn.Module]]
    early_patches: Callable[[Any, Tensor], Tensor]
    features: Callable[[Any, Mapping[str, Tensor]], Features]
    special_tokens: SpecialTokens


def mini_sizes(hidden_size: int, vocab_size: int, bottleneck: int, skip_bottleneck: int) -> dict[str, Any]:
    """The sizes that all mini models have in common."""
    return {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": hidden_size,
        "num_heads": HEADS,
        "vocab_size": vocab_size,
        "bottleneck": bottleneck,
        "skip_bottleneck": skip_bottleneck,
        "dropout": 0.0,
    }


def run_stages(model: VLP, state: State, stages: range) -> State:
    """The state after the stages, nothing skipped, with every token and not the pooled ones alone."""
    for stage in stages:
        layers = model.stages[stage]
        state = state.with_hidden({model.layers[i].stream: model.run_layer(i, state, skipped=False) for i in layers})
    return state
