"""What pre-training must know of each model family, and what families share."""

from __future__ import annotations

import math
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

TOKEN_SIZE = 16
"""Side in pixels of what an image token shows."""

IMAGE_TOKENS = (IMAGE_SIZE // TOKEN_SIZE) ** 2
VISION_SIZE = 64
MAX_POSITIONS = 512
LONGEST_WAVE = 20.0
"""Of the vision towers' first positions, in patches times 2 pi."""


@dataclass(frozen=True)
class Pixels:
    """How a model reads images.

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


@dataclass(frozen=True)
class Prompt:
    """Text that the chat template and the processor put around the image, the question and the answer.

    Attributes:
        before: Up to the text, the image's tokens in it.
        after: From behind the text up to the answer.
        end: Behind the answer.
    """

    before: str
    after: str
    end: str


@dataclass(frozen=True)
class AnsweringModel(Pixels):
    """A model that answers in words, as pre-training sees it.

    Attributes:
        build: From the decoder's hidden size and the tokenizer to the model.
        initialise: Gives it its first weights.
        eyes: The modules that turn pixels into image tokens, which the first part trains.
        image_tokens: From the model and (batch, 3, 96, 96) pixels to (batch, IMAGE_TOKENS, hidden_size).
        mention_layer, target_layer: Decoder layers after which named objects, and the object that is the answer, are
            looked for.
        make_tokenizer: From a seed.
        make_processor: From the tokenizer.
        prompt: What stands around texts.
    """

    build: Callable[[int, Any], Any]
    initialise: Callable[[Any], None]
    eyes: Callable[[Any], dict[str, nn.Module]]
    image_tokens: Callable[[Any, Tensor], Tensor]
    mention_layer: int
    target_layer: int
    make_tokenizer: Callable[[int], Any]
    make_processor: Callable[[Any], Any]
    prompt: Prompt


def untrained(kind: type[Any], hidden_size: int, decoder_layers: int, tokenizer: Any, **settings: Any) -> Any:
    """A model of a kind with a small Llama as its decoder, which says short answers by itself.

    Args:
        kind: The model's class.
        hidden_size: Of the decoder.
        decoder_layers: Number of its layers.
        tokenizer: Gives the size of the vocabulary and the special tokens.
        settings: The rest of the model's config.
    """
    from transformers import GenerationConfig

    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    decoder = {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": decoder_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": hidden_size // HEADS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        **special,
    }
    model = kind(kind.config_class(text_config=decoder, **special, **settings))
    model.generation_config = GenerationConfig(**special, max_new_tokens=16)
    return model


def vision_sizes(layers: int, patch_size: int) -> dict[str, Any]:
    """The settings of a small vision tower."""
    return {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 3 * VISION_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": patch_size,
    }


def grid_positions(side: int, size: int) -> Tensor:
    """(side * side, size) sines and cosines of column and row, so that near patches are alike from the first step.

    Args:
        side: Patches in a row and in a column.
        size: A multiple of 4.
    """
    frequencies = LONGEST_WAVE ** -(torch.arange(size // 4) / (size // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat((columns, rows), dim=1)


def initialise(model: Any, decoder_layers: int) -> None:
    """Xavier weights, as METER-mini's: the usual N(0, 0.02) is meant for wider models.

    The output of a decoder layer is scaled down by the number of layers, as GPT-2 does. The vision tower's positions begin
    as waves: from random ones it takes long to find out which patches are neighbours, and shapes span several. A class
    token's position, the first one, begins at nothing.
    """
    depth = math.sqrt(2 * decoder_layers)
    for name, parameter in model.named_parameters():
        if "patch_embedding" in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "position_embedding" in name:
            side = math.isqrt(len(parameter))
            parameter.data.zero_()[len(parameter) - side**2 :] = grid_positions(side, parameter.shape[1])
        elif "embed" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.div_(depth)
