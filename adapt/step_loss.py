"""One step of training an adaptation: which examples, and their loss under a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.hardware import ONE_DEVICE, Devices, Hardware, precision_on, share
from das_gym.adapt.memory import make_room
from das_gym.adapt.plateau import Plateau
from das_gym.adapt.reading_ahead import ReadingAhead
from das_gym.adapt.recipe import settled
from das_gym.adapt.training import Group, StepResult, Trainer, TrainingConfig, adamw, decay
from torch import Tensor, nn

from das_gym.engine.broken import told_examples, told_mask
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.models.inputs import Requests
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.loading import AdaptedModel, Backbone, shuffled
from das_gym.processes import world
from das_gym.tasks.base import Task


def batch_at(examples: Sequence[Any], batch_size: int, seed: int, step: int) -> list[Any]:
    """The examples of a step: every epoch goes through all of them once, in an order of its own."""
    per_epoch = len(examples) // batch_size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    return [examples[i] for i in order[position * batch_size : (position + 1) * batch_size]]


class StepLoss:
    """The task's loss of a frozen model with adapters, as a function of step and mask.

    Encoders run once per example and their outputs are kept, since nothing that trains touches them, unless dropout
    (a model that is not `frozen`) or augmentation makes them random, or what they are made by trains.

    Args:
        backbone: The frozen model.
        head: Its head.
        task: Batches and loss.
        examples: What to train on.
        batch_size: Examples a step.
        seed: Of the order of examples, and of augmentation.
        augment: Whether images of a step go through RandAugment.
        encoder: Encoder outputs that are kept already, of the same frozen encoders and images; None begins anew.
        hardware: How many examples go through the model at a time, how many encoder outputs are kept, and how many
            processes read pictures.
        itm_weight: Of the image-text-matching loss, see `Task.matching_loss`; 0 adds none.

    Attributes:
        reading: Reads pictures of coming steps ahead of `parts`; whoever takes parts closes it at last.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        task: Task,
        examples: Sequence[Any],
        batch_size: int,
        seed: int,
        augment: bool = False,
        encoder: EncoderCache | None = None,
        hardware: Hardware = ONE_DEVICE,
        itm_weight: float = 0.0,
    ) -> None:
        check_training(backbone, task, hardware, itm_weight)
        if not 1 <= batch_size <= len(examples):
            raise ValueError(
                f"batch_size={batch_size}: there are {len(examples)} examples to train on; use 1..{len(examples)}"
            )
        self.vlp = backbone.vlp
        self.head = head
        self.task = task
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.itm_weight = itm_weight
        self._matching = task.matching_loss(backbone.heads) if itm_weight else None
        self.micro_batch_size = hardware.micro_batch_size
        self.encoder = encoder or EncoderCache(backbone.vlp, task.processor, int(hardware.encoder_cache_gib * 2**30))
        self.keeps_encoded = backbone.vlp.frozen and not backbone.vlp.encoders_train
        reads_for = self.encoder.processor if self.keeps_encoded and not augment else task.processor
        steps_per_epoch = len(examples) // batch_size
        self.reading = ReadingAhead(reads_for, self._to_read, steps_per_epoch, hardware.dataloader_num_workers)
        self._last: tuple[np.ndarray | None, list[Any]] = (None, [])

    def __call__(self, step: int, mask: np.ndarray | None = None) -> StepResult:
        """Mean loss and metric of the step's examples under a mask ((n_layers,) bool; None = the pruned one)."""
        return self._result(batch_at(self.examples, self.batch_size, self.seed, step), step, mask)

    def parts(self, step: int, mask: np.ndarray | None = None) -> Iterator[StepResult]:
        """As a call gives it, in parts that add up to it: this process's examples, as many at a time as wanted."""
        for number, part in enumerate(self._parts_of(step)):
            weight = len(part) * world() / self.batch_size
            with self.reading.of(step, number):
                result = self._result(part, step, mask)
            yield {name: value * weight for name, value in result.items()}

    def _parts_of(self, step: int) -> list[Sequence[Any]]:
        own = share(batch_at(self.examples, self.batch_size, self.seed, step))
        size = self.micro_batch_size or len(own)
        return [own[start : start + size] for start in range(0, len(own), size)]

    def _to_read(self, step: int) -> list[Requests]:
        """Pictures of each part of a step, but those whose encoder outputs are kept."""
        keeps, augment = self.keeps_encoded and not self.augment, (self.seed, step) if self.augment else None
        read, pairs = self.reading.processor.requests, self.task.pairs
        return [
            read(pairs(part), augment, lambda key: keeps and self.encoder.has("image", key)) for part in self._parts_of(step)
        ]

    def _result(self, examples: Sequence[Any], step: int, mask: np.ndarray | None) -> StepResult:
        self._last = mask, list(examples)
        targets = self.targets(examples)
        losses, logits = self.losses(examples, targets, mask, (self.seed, step) if self.augment else None)
        with torch.no_grad():
            metric = self.task.metrics(logits, targets).mean()
        return {"loss": losses.mean(), self.task.metric_name: metric}

    def about(self) -> str:
        """What the last step was of, in words: its mask and its examples."""
        mask, examples = self._last
        under = "" if mask is None else f"under {told_mask(mask)}, "
        return f"{under}on {told_examples([example.key for example in examples])}"

    def losses(
        self,
        examples: Sequence[Any],
        targets: dict[str, Tensor],
        mask: np.ndarray | None,
        augment: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(batch,) losses of examples under a mask, nats, all that training adds up; and what the head says of them.

        Args:
            examples: The examples.
            targets: What `targets` gives for them.
            mask: (n_layers,) bool; None = the pruned one.
            augment: A seed and a step, where images are to be augmented.
        """
        pooled = self._pooled(examples, mask, augment)
        logits = self.head(self.task.group_features(pooled))
        losses = self.task.losses(logits, targets)
        return losses if self._matching is None else losses + self.itm_weight * self._matching(pooled), logits

    def _pooled(self, examples: Sequence[Any], mask: np.ndarray | None, augment: tuple[int, int] | None) -> Tensor:
        pairs = self.task.pairs(examples)
        if self.keeps_encoded and augment is None:
            return self.vlp.forward_encoded(self.encoder(pairs), mask)
        return self.vlp.ready(self.task.processor, pairs, augment)(mask)

    @torch.no_grad()
    def held_out_loss(self, examples: Sequence[Any], at_once: int = 64) -> float:
        """Mean loss of examples with nothing skipped but what is pruned, nats, without augmentation."""
        step = self.task.examples_for_pairs(at_once)
        chunks = [examples[start : start + step] for start in range(0, len(examples), step)]
        losses = [self.losses(chunk, self.targets(chunk), None)[0].double() for chunk in chunks]
        return float(torch.cat(losses).mean())

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The task's targets, where the model lies."""
        return {name: tensor.to(self.vlp.device) for name, tensor in self.task.targets(examples).items()}


def check_training(backbone: Backbone, task: Task, hardware: Hardware, itm_weight: float) -> None:
    """Refuse what can be told before anything is searched or trained.

    Args:
        backbone: What is to train.
        task: On what.
        hardware: As for `StepLoss`, with the precision.
        itm_weight: As for `StepLoss`.

    Raises:
        ValueError: nothing of the model can, no loss for `itm_weight`, or a precision that its device does not have.
    """
    if backbone.vlp.untrainable:
        raise ValueError(f"nothing of this model can train: {backbone.vlp.untrainable}; search it without training")
    if itm_weight:
        task.matching_loss(backbone.heads)
    precision_on(backbone.vlp.device, hardware)


def set_up(
    model: AdaptedModel,
    examples: Sequence[Any],
    config: TrainingConfig,
    checkpoint: Path | None,
    encoder: EncoderCache | None = None,
    tell: bool = False,
    held_out: Sequence[Any] = (),
) -> tuple[StepLoss, Trainer]:
    """The loss of a step and what runs the steps.

    Args:
        model: What trains, in place: what asks for a gradient in its model and its head.
        examples: What to train on.
        config: Settings.
        checkpoint: File for intermediate checkpoints, as for `Trainer`.
        encoder: As for `StepLoss`.
        tell: Whether to print what memory it takes.
        held_out: Examples that `config.patience` looks at.
    """
    config, _ = settled(config, model)
    vlp, head, task = model.backbone.vlp, model.head, model.task
    batch_size = min(config.batch_size or task.examples_for_pairs(config.pairs_per_step), len(examples))
    rate, head_rate = config.learning_rate or 0.0, config.head_learning_rate or 0.0
    tunable = [p for p in vlp.parameters() if p.requires_grad]
    own = list(own_parameters(vlp, head).values())
    groups = Group(tunable, rate), Group(own, head_rate)
    schedule = partial(decay, steps=config.steps, warmup=config.warmup, power=config.power, schedule=config.schedule)
    vlp.gradient_checkpointing = config.gradient_checkpointing
    step_loss = StepLoss(
        model.backbone, head, task, examples, batch_size, config.seed, False, encoder, config, config.itm_weight
    )
    plateau = None
    if config.patience is not None:
        measured = shuffled(task, held_out, task.reward_examples)
        plateau = Plateau(config.steps, config.warmup, config.patience, partial(step_loss.held_out_loss, measured))
    devices = Devices(config, vlp.device, checkpoint and checkpoint.parent)
    trainer = Trainer(
        {"vlp": vlp, "head": head},
        adamw(groups, config.weight_decay),
        config.steps,
        schedule if plateau is None else plateau.factor,
        checkpoint,
        config.save_every,
        devices=devices,
        plateau=plateau,
        reading=step_loss.reading,
    )
    with devices.autocast():
        line = make_room(step_loss, (*tunable, *own), -(-batch_size // world()))
    if tell:
        print(line)
    return step_loss, trainer
