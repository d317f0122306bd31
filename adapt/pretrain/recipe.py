"""Pre-training the mini models on captioned scenes: the shipped checkpoints come from here.

First the layers that read the image alone learn to name colour and shape at every patch; then the whole model
learns masked language modelling, image-text matching, which patches a colour or shape word points at
(before fusion, as in GLIP), which patches show what the sentence is about (after fusion, as in MDETR), and where
everything is. Without the dense losses fusion stays at the language prior for a very long time. Where a family has no
encoders, its first blocks stand in for them, in the first part beside an empty text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from das_gym.adapt.pretrain.batches import CaptionBatches, image_batch
from das_gym.adapt.pretrain.family import HEADS, PATCH_SIZE, PretrainModel
from das_gym.adapt.pretrain.losses import PretrainHeads, caption_losses, image_losses
from das_gym.adapt.pretrain.models import PRETRAIN_MODELS
from das_gym.adapt.pretrain.tokenizer import tokenizer_files, train_tokenizer
from das_gym.adapt.training import (
    POSITIVE,
    TRAINING_RANGES,
    Group,
    Log,
    StepResult,
    Trainer,
    adamw,
    check_ranges,
    polynomial_decay,
    prefixed,
)
from torch import nn

from das_gym.config import check_names
from das_gym.models.base import VLP
from das_gym.models.checkpoints import save_checkpoint

CHECKPOINTS = ("image.pt", "fusion.pt")
"""Names of the intermediate checkpoints of both parts."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pre-training; the defaults made the shipped checkpoints.

    Attributes:
        model: A key of `PRETRAIN_MODELS`.
        seed: Of weights, scenes and captions.
        hidden_size: Width of all layers.
        bottleneck, skip_bottleneck: Adapters that the checkpoint will be given.
        image_steps, image_batch_size, image_learning_rate: Of the first part.
        steps, batch_size: Of the second part.
        learning_rate: Of the second part; None is the model's own, `PRETRAIN_MODELS[model].learning_rate`.
        warmup: Share of each part's steps.
        weight_decay: Of matrices.
        save_every: Steps between checkpoints.
    """

    model: str = "METER"
    seed: int = 0
    hidden_size: int = 64
    bottleneck: int = 16
    skip_bottleneck: int = 48
    image_steps: int = 2000
    image_batch_size: int = 64
    image_learning_rate: float = 2e-3
    steps: int = 5000
    batch_size: int = 80
    learning_rate: float | None = None
    warmup: float = 0.04
    weight_decay: float = 0.01
    save_every: int = 250

    def __post_init__(self) -> None:
        check_names([self.model], PRETRAIN_MODELS, "model")
        positive = ("image_steps", "image_batch_size", "image_learning_rate", "hidden_size", "skip_bottleneck")
        check_ranges(self, **TRAINING_RANGES, bottleneck=(0, math.inf), **dict.fromkeys(positive, POSITIVE))
        if self.hidden_size % HEADS:
            raise ValueError(f"hidden_size={self.hidden_size} cannot be split over {HEADS} heads; use a multiple of {HEADS}")

    @property
    def recipe(self) -> PretrainModel:
        """What is particular to the model."""
        return PRETRAIN_MODELS[self.model]


def pretrain(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train a mini model.

    Args:
        config: Settings.
        out: Folder to write the checkpoint to: config.json, model.safetensors and the tokenizer. It holds the
            image-text matching head too: `load_checkpoint(out).heads["itm_score"]`, row 1 = they match.
        checkpoints: Folder of intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.

    Returns:
        `out`.
    """
    torch.manual_seed(config.seed)
    recipe = config.recipe
    tokenizer = train_tokenizer(config.seed, recipe.special_tokens)
    bare = recipe.build(config.hidden_size, len(tokenizer), 0, config.skip_bottleneck)
    recipe.initialise(bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("adapter" not in name)
    heads = PretrainHeads(config.hidden_size, bare.feature_size, len(tokenizer))
    _train_images(config, bare, heads, checkpoints / CHECKPOINTS[0], log)
    batches = CaptionBatches(tokenizer, config.seed, config.batch_size, PATCH_SIZE, recipe.normalise)
    _train_captions(config, bare, heads, batches, checkpoints / CHECKPOINTS[1], log)
    model = recipe.build(config.hidden_size, len(tokenizer), config.bottleneck, config.skip_bottleneck)
    model.load_state_dict(bare.state_dict(), strict=False)
    adapters = [name for name in model.state_dict() if "adapter" in name]
    match = {"itm_score": heads.match.state_dict()}
    save_checkpoint(out, model, heads=match, files=tokenizer_files(tokenizer), leave_out=adapters)
    return out


def _train_images(config: PretrainConfig, model: VLP, heads: PretrainHeads, checkpoint: Path, log: Log | None) -> None:
    recipe = config.recipe

    def step(index: int) -> StepResult:
        batch = image_batch(config.seed, index, config.image_batch_size, PATCH_SIZE, recipe.normalise)
        return image_losses(heads, recipe.early_patches(model, batch.image), batch)

    parts = {**recipe.image_parts(model), "heads": heads.dense()}
    trainer = _trainer(config, parts, config.image_steps, config.image_learning_rate, checkpoint)
    trainer.run(step, "images", prefixed("image", log))


def _train_captions(
    config: PretrainConfig, model: VLP, heads: PretrainHeads, batches: CaptionBatches, checkpoint: Path, log: Log | None
) -> None:
    recipe = config.recipe

    def step(index: int) -> StepResult:
        batch = batches(index)
        inputs = {"image": batch.scenes.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return caption_losses(heads, recipe.features(model, inputs), batch)

    learning_rate = config.learning_rate or config.recipe.learning_rate
    trainer = _trainer(config, {"model": model, "heads": heads}, config.steps, learning_rate, checkpoint)
    trainer.run(step, "captions", prefixed("fusion", log))


def _trainer(
    config: PretrainConfig, parts: dict[str, nn.Module], steps: int, learning_rate: float, checkpoint: Path
) -> Trainer:
    parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    optimizer = adamw([Group(parameters, learning_rate)], config.weight_decay)
    schedule = partial(polynomial_decay, steps=steps, warmup=config.warmup)
    return Trainer(parts, optimizer, steps, schedule, checkpoint, config.save_every)
