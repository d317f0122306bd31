"""What pre-training must know of each model that answers in words, and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain.family import HEADS, Pixels
from das_gym.shapes.scenes import IMAGE_SIZE

TOKEN_SIZE = 16
"""Side in pixels of what an image token shows."""

IMAGE_TOKENS = (IMAGE_SIZE // TOKEN_SIZE) ** 2
VISION_SIZE = 64
MAX_POSITIONS = 512
LONGEST_WAVE = 20.0
"""Of the vision towers' first positions, in patches times 2 pi."""


@dataclass(frozen=True)
class Prompt:
    """What the chat template and the processor write around a user's image and text, and an assistant's answer.

    Attributes:
        before: Up to the text, the picture's tokens in it.
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


def untrained(kind: type[Any], config: Any, tokenizer: Any) -> Any:
    """A model of a kind, which says short answers by itself."""
    from transformers import GenerationConfig

    model = kind(config)
    model.generation_config = GenerationConfig(**special_ids(tokenizer), max_new_tokens=16)
    return model


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of special tokens as configs hold them."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def decoder_sizes(hidden_size: int, layers: int, tokenizer: Any) -> dict[str, Any]:
    """The settings of a small Llama."""
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": hidden_size // HEADS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        **special_ids(tokenizer),
    }


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

    What a decoder layer adds is scaled down by the number of layers, as GPT-2 does. The vision tower's positions begin
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
