"""SmolVLM-mini: its size and its first weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from das_gym.shapes.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

PATCH_SIZE, SCALE_FACTOR = 8, 2
TOKEN_SIZE = PATCH_SIZE * SCALE_FACTOR
"""Side in pixels of what an image token shows."""

IMAGE_TOKENS = (IMAGE_SIZE // TOKEN_SIZE) ** 2
VISION_SIZE, VISION_LAYERS = 64, 3
DECODER_LAYERS = 12
HEADS = 4
MAX_POSITIONS = 512
LONGEST_WAVE = 20.0
"""Of the vision tower's first positions, in patches times 2 pi."""


def build(hidden_size: int, tokenizer: PreTrainedTokenizerFast) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with 3 vision and 12 decoder layers on 96 px images.

    Args:
        hidden_size: Of the decoder.
        tokenizer: Gives the size of the vocabulary and the special tokens.
    """
    from transformers import GenerationConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": DECODER_LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": hidden_size // HEADS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        **special,
    }
    vision = {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 3 * VISION_SIZE,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **special,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, max_new_tokens=16)
    return model


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


def initialise(model: SmolVLMForConditionalGeneration) -> None:
    """Xavier weights, as METER-mini's: the usual N(0, 0.02) is meant for wider models.

    What a decoder layer adds is scaled down by the number of layers, as GPT-2 does. The vision tower's positions begin
    as waves: from random ones it takes long to find out which patches are neighbours, and shapes span several.
    """
    depth = math.sqrt(2 * DECODER_LAYERS)
    for name, parameter in model.named_parameters():
        if "patch_embedding" in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "position_embedding" in name:
            parameter.data.copy_(grid_positions(math.isqrt(len(parameter)), VISION_SIZE))
        elif "embed" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.div_(depth)
