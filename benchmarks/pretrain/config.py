"""The settings of pre-training, each model's own defaults, and the training that all parts have in common."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from das_gym.adapt.training import POSITIVE, TRAINING_RANGES, Group, Trainer, adamw, check_ranges, decay
from torch import nn

from benchmarks.pretrain.family import HEADS
from das_gym.config import check_names, choice

CHECKPOINTS = ("image.pt", "fusion.pt")
"""Names of the intermediate checkpoints of both parts."""


@dataclass(frozen=True)
class Size:
    """What differs from model to model; the fields are those of `PretrainConfig`."""

    hidden_size: int
    image_steps: int
    image_batch_size: int
    steps: int
    batch_size: int
    learning_rate: float


SIZES = {
    "METER": Size(hidden_size=64, image_steps=2000, image_batch_size=64, steps=5000, batch_size=80, learning_rate=8e-4),
    "ViLT": Size(hidden_size=64, image_steps=2000, image_batch_size=64, steps=5000, batch_size=80, learning_rate=1e-3),
    "SmolVLM": Size(hidden_size=80, image_steps=3000, image_batch_size=16, steps=4800, batch_size=10, learning_rate=1e-3),
    "LLaVA": Size(hidden_size=64, image_steps=2500, image_batch_size=16, steps=3000, batch_size=8, learning_rate=1e-3),
}
"""By model: with these the shipped checkpoints were made."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pre-training; the defaults made the shipped checkpoints. None is the model's own, see `SIZES`.

    Attributes:
        model: Bundled model to pre-train.
        seed: Random seed of weights, scenes and texts.
        hidden_size: Width of all layers; for SmolVLM and LLaVA, of the decoder. None is the model's own.
        bottleneck: Width of the parallel adapters of METER and ViLT.
        skip_bottleneck: Width of the skip adapters of METER and ViLT.
        image_steps: Training steps of the first part, the image encoder. None is the model's own.
        image_batch_size: Batch size of the first part. None is the model's own.
        image_learning_rate: Peak learning rate of the first part.
        steps: Training steps of the second part, all parameters. None is the model's own.
        batch_size: Batch size of the second part; for SmolVLM and LLaVA, images with about six questions each. None is the
            model's own.
        learning_rate: Peak learning rate of the second part. None is the model's own.
        warmup: Fraction of the steps of each part in which the learning rate rises, 0..1.
        weight_decay: Weight decay of matrices.
        save_every: Steps between checkpoints.
    """

    group: ClassVar[str] = "Pre-training"

    model: str = choice("METER", SIZES)
    seed: int = 0
    hidden_size: int | None = None
    bottleneck: int = 16
    skip_bottleneck: int = 48
    image_steps: int | None = None
    image_batch_size: int | None = None
    image_learning_rate: float = 2e-3
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.04
    weight_decay: float = 0.01
    save_every: int = 250

    def __post_init__(self) -> None:
        check_names([self.model], SIZES, "model")
        positive = ("image_steps", "image_batch_size", "image_learning_rate", "hidden_size", "skip_bottleneck")
        check_ranges(self, **TRAINING_RANGES, bottleneck=(0, math.inf), **dict.fromkeys(positive, POSITIVE))
        if self.size.hidden_size % HEADS:
            raise ValueError(f"hidden_size={self.hidden_size} cannot be split over {HEADS} heads; use a multiple of {HEADS}")

    @property
    def size(self) -> Size:
        """Return the given values, with the model's own for the rest."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Size)}
        return dataclasses.replace(SIZES[self.model], **{k: v for k, v in given.items() if v is not None})


def make_trainer(
    config: PretrainConfig, parts: dict[str, nn.Module], steps: int, learning_rate: float, checkpoint: Path
) -> Trainer:
    """The trainer of one part.

    Args:
        config: Settings.
        parts: What is trained and saved, by name.
        steps: How many.
        learning_rate: Peak.
        checkpoint: File to save to and to resume from.
    """
    parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    optimizer = adamw([Group(parameters, learning_rate)], config.weight_decay)
    schedule = partial(decay, steps=steps, warmup=config.warmup)
    return Trainer(parts, optimizer, steps, schedule, checkpoint, config.save_every)
