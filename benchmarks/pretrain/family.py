"""What pre-training must know of a model: the base classes of the recipes, and what models share."""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.pretrain.texts import PATCH_SIZE
from benchmarks.pretrain.tokenizer import Tokens, special_ids
from das_gym.models.base import VLP, State
from das_gym.shapes.scenes import IMAGE_SIZE

HEADS = 4
SKIP_BOTTLENECK = 48
TEXT_TOKENS = 64
"""Longest text of METER-mini and ViLT-mini, in tokens."""

IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_SIZE = 64
MAX_POSITIONS = 512
LONGEST_WAVE = 20.0
"""Of the vision towers' first positions, in patches times 2 pi."""


@dataclass(frozen=True)
class Size:
    """The settings that differ from model to model: with these the shipped checkpoints were made."""

    hidden_size: int
    image_steps: int
    image_batch_size: int
    steps: int
    batch_size: int
    learning_rate: float


class Recipe:
    """A model as pre-training sees it.

    Attributes:
        size: The settings of the shipped checkpoint.
        mean, std: Of the pixels that the model reads: red, green and blue.
    """

    size: ClassVar[Size]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return (batch, 3, height, width) pixels, 0..1, as the model reads them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class PairRecipe(Recipe):
    """A model of a text and an image, with a task head.

    A subclass defines:

    - `build(hidden_size, vocab_size, bottleneck)`: the model, with parallel adapters of that width if it is not 0.
    - `image_parts(model)`: the modules by name that the first part trains.
    - `early_patches(model, image)`: (batch, patches, hidden_size), for the first part.
    - `features(model, batch)`: what the losses of the second part read.

    Attributes:
        tokens: Of its tokenizer.
        positions, words: Patterns of the names of position and word embeddings, which begin larger than other weights.
    """

    tokens: ClassVar[Tokens]
    positions: ClassVar[str]
    words: ClassVar[str]

    def initialise(self, model: VLP) -> None:
        """Draw Xavier weights: at width 64 the usual N(0, 0.02), meant for 768, leaves signals too small to learn from."""
        for name, parameter in model.named_parameters():
            if "adapter" in name or "token_types" in name:
                continue
            if "patch_embedding" in name and parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif re.search(self.positions, name):
                nn.init.normal_(parameter, std=0.3)
            elif parameter.ndim == 2 and re.search(self.words, name):
                nn.init.normal_(parameter, std=0.1)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)


def mini_sizes(hidden_size: int, vocab_size: int, bottleneck: int) -> dict[str, Any]:
    """Return the configuration that METER-mini and ViLT-mini have in common."""
    return {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": hidden_size,
        "num_heads": HEADS,
        "vocab_size": vocab_size,
        "bottleneck": bottleneck,
        "skip_bottleneck": SKIP_BOTTLENECK,
        "dropout": 0.0,
    }


def run_stages(model: VLP, state: State, stages: range) -> State:
    """Return the state after the stages, nothing skipped, with every token and not the pooled ones alone."""
    for stage in stages:
        layers = model.stages[stage]
        state = state.with_hidden({model.layers[i].stream: model.run_layer(i, state, skipped=False) for i in layers})
    return state


@dataclass(frozen=True)
class Prompt:
    """Text that chat template and processor put before the question, between question and answer, and after the answer.

    `answer_space` stands between `after` and the answer.
    """

    before: str
    after: str
    end: str
    answer_space: str = " "


class AnsweringRecipe(Recipe):
    """A model that answers in words: a vision tower and a small Llama.

    A subclass defines:

    - `build(hidden_size, tokenizer)`: the model with a decoder of this width.
    - `eyes(model)`: the modules by name that turn pixels into image tokens, which the first part trains.
    - `image_tokens(model, image)`: (batch, IMAGE_TOKENS, hidden_size) of (batch, 3, 96, 96) pixels.
    - `make_processor(tokenizer)`: the processor; images are read whole at 96 px.

    Attributes:
        tokens: Of its tokenizer.
        prompt: What stands around texts.
        decoder_layers: How many.
        mention_layer, target_layer: Decoder layers after which named objects, and the object that is the answer, are
            looked for.
    """

    tokens: ClassVar[Tokens]
    prompt: ClassVar[Prompt]
    decoder_layers: ClassVar[int]
    mention_layer: ClassVar[int]
    target_layer: ClassVar[int]

    def untrained(self, kind: type[Any], hidden_size: int, tokenizer: Any, **settings: Any) -> Any:
        """Return a model of a class of transformers that says short answers by itself; `settings` are its config's rest."""
        from transformers import GenerationConfig

        special = special_ids(tokenizer)
        decoder = {
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": self.decoder_layers,
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

    def initialise(self, model: Any) -> None:
        """Draw Xavier weights, as METER-mini's.

        The output of a decoder layer is scaled down by the number of layers, as GPT-2 does. The vision tower's positions
        begin as waves: from random ones it takes long to find out which patches are neighbours, and shapes span several. A
        class token's position, the first one, begins at nothing.
        """
        depth = math.sqrt(2 * self.decoder_layers)
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


def vision_sizes(layers: int, patch_size: int) -> dict[str, Any]:
    """Return the configuration of a small vision tower."""
    return {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 3 * VISION_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": patch_size,
    }


def grid_positions(side: int, size: int) -> Tensor:
    """Return (side * side, size) sines and cosines of column and row: near patches are alike from the first step."""
    frequencies = LONGEST_WAVE ** -(torch.arange(size // 4) / (size // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)
    return torch.cat((waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)), dim=1)
