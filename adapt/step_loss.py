"""The loss of a training step: which examples it takes, and what they lose under a mask."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from das_gym.adapt.hardware import (
    ONE_DEVICE,
    check_precision,
    free_bytes,
    gib_bytes,
    make_accelerator,
    process_share,
    training_bytes,
)
from das_gym.adapt.paper import PAPER
from das_gym.adapt.prefetching import Prefetcher
from das_gym.adapt.settings import Hardware, TrainingConfig
from das_gym.adapt.training import WEIGHT_DECAY, StepResult, Trainer, adamw, learning_rate_factor
from torch import Tensor

from das_gym.engine.caches import EncoderCache
from das_gym.engine.scores import format_examples, format_mask
from das_gym.engine.tree import saved_bytes
from das_gym.models.base import tensor_bytes
from das_gym.models.inputs import Requests, to_device
from das_gym.models.random_states import kept_random_states
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.loading import AdaptedModel, Backbone
from das_gym.processes import is_main_process, world_size
from das_gym.tasks.base import Task

Config = TypeVar("Config", bound=TrainingConfig)

USABLE_MEMORY = 0.8
"""Fraction of the free memory that an estimate may fill: allocators leave gaps."""


def training_batch(examples: Sequence[Any], batch_size: int, seed: int, step: int) -> list[Any]:
    """Return the examples of a step: each epoch visits all of them once, in another order."""
    # of seed and step alone, so that a resumed training and every process draw the same
    epoch, position = divmod(step, len(examples) // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    return [examples[i] for i in order[position * batch_size : (position + 1) * batch_size]]


class StepLoss:
    """The task's loss of a frozen model with adapters, as a function of step and mask.

    The frozen encoders run once per example and their outputs are cached, since no training step changes them. They run at
    every step where dropout (a model that is not `frozen`) or augmentation makes them random, or where they train.

    Args:
        model: The frozen model, its head, and the task that makes batches and losses.
        examples: Training examples.
        batch_size: Examples per step.
        seed: Seed of the order of examples, and of augmentation.
        augment: Whether images go through RandAugment.
        encoder_cache: Cache of the same frozen encoders and images; None makes a new one.
        hardware: How many examples go through the model at a time, the cache's size, and how many processes read images.
        itm_weight: Weight of the image-text-matching loss, see `Task.matching_loss`; 0 adds none.
    """

    def __init__(
        self,
        model: AdaptedModel,
        examples: Sequence[Any],
        batch_size: int,
        seed: int,
        augment: bool = False,
        encoder_cache: EncoderCache | None = None,
        hardware: Hardware = ONE_DEVICE,
        itm_weight: float = 0.0,
    ) -> None:
        backbone = model.backbone
        head = model.head
        task = model.task
        check_training(backbone, task, hardware, itm_weight)
        if not 1 <= batch_size <= len(examples):
            raise ValueError(
                f"`batch_size` is out of range: got {batch_size}, expected 1..{len(examples)} (training examples)."
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
        cache_bytes = gib_bytes(hardware.encoder_cache_gib)
        self.encoder_cache = encoder_cache or EncoderCache(backbone.vlp, task.processor, cache_bytes)
        # Dropout within the encoders, and training them, changes their outputs from step to step.
        self.caches_encoders = backbone.vlp.frozen and not backbone.vlp.encoders_train
        reader = self.encoder_cache.processor if self.caches_encoders and not augment else task.processor
        self.prefetcher = Prefetcher(reader, self._requests, hardware.dataloader_num_workers)
        self._last: tuple[np.ndarray | None, Sequence[Any]] = (None, [])

    def __call__(self, step: int, mask: np.ndarray | None = None) -> StepResult:
        """Return mean loss and metric of the step's examples under a mask ((n_layers,) bool; None = the pruned one)."""
        return self._evaluate(training_batch(self.examples, self.batch_size, self.seed, step), step, mask)

    def parts(self, step: int, mask: np.ndarray | None = None) -> Iterator[StepResult]:
        """Yield parts that add up to the result of a call, one for each micro-batch of this process's examples."""
        for number, part in enumerate(self._micro_batches(step)):
            self.prefetcher.load(step, number)
            # parts may differ in size, and the trainer divides the sum over processes by their number
            weight = len(part) * world_size() / self.batch_size
            yield {name: value * weight for name, value in self._evaluate(part, step, mask).items()}

    def _micro_batches(self, step: int) -> list[Sequence[Any]]:
        own = process_share(training_batch(self.examples, self.batch_size, self.seed, step))
        size = self.micro_batch_size or len(own)
        return [own[start : start + size] for start in range(0, len(own), size)]

    def _augmentation(self, step: int) -> tuple[int, int] | None:
        return (self.seed, step) if self.augment else None

    def _requests(self, step: int) -> list[Requests]:
        """Return which images each micro-batch of a step has to read: those whose encoder outputs are not cached."""
        processor = self.prefetcher.processor
        augment = self._augmentation(step)
        caches = self.caches_encoders and augment is None

        def cached(key: Any) -> bool:
            return caches and self.encoder_cache.has("image", key)

        return [processor.requests(self.task.pairs(part), augment, cached) for part in self._micro_batches(step)]

    def _evaluate(self, examples: Sequence[Any], step: int, mask: np.ndarray | None) -> StepResult:
        self._last = mask, examples
        targets = self.targets(examples)
        losses, logits = self.losses(examples, targets, mask, self._augmentation(step))
        with torch.no_grad():
            metric = self.task.metrics(logits, targets).mean()
        return {"loss": losses.mean(), self.task.metric_name: metric}

    def describe_step(self) -> str:
        """Return a text with mask and examples of the last step, for error messages."""
        mask, examples = self._last
        under = "" if mask is None else f"under {format_mask(mask)}, "
        return f"{under}on {format_examples([example.key for example in examples])}"

    def losses(
        self,
        examples: Sequence[Any],
        targets: dict[str, Tensor],
        mask: np.ndarray | None,
        augment: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the (batch,) losses of examples under a mask, in nats, and the head's outputs."""
        pairs = self.task.pairs(examples)
        if self.caches_encoders and augment is None:  # augmented images differ from step to step
            pooled = self.vlp.forward_encoded(self.encoder_cache(pairs), mask)
        else:
            pooled = self.vlp.make_forward(self.task.processor, pairs, augment)(mask)
        logits = self.head(self.task.group_features(pooled))
        losses = self.task.losses(logits, targets)
        return losses if self._matching is None else losses + self.itm_weight * self._matching(pooled), logits

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return the task's targets, on the model's device."""
        return {name: to_device(tensor, self.vlp.device) for name, tensor in self.task.targets(examples).items()}

    def activation_bytes(self) -> int:
        """Return how many bytes the forward pass of the first example keeps for the backward pass, without parameters."""
        example = self.examples[:1]
        augment = (self.seed, 0) if self.augment else None
        parameters = [*self.vlp.parameters(), *self.head.parameters()]
        # dropout must not draw from the random numbers of the training
        with kept_random_states(self.vlp, self.head):
            return saved_bytes(lambda: self.losses(example, self.targets(example), None, augment), parameters)

    def expected_cache_bytes(self) -> int:
        """Return the bytes by which the encoder cache may still grow, from the outputs of the first example."""
        if not self.caches_encoders or self.augment:
            return 0
        each = tensor_bytes(self.encoder_cache(self.task.pairs(self.examples[:1])))
        return max(0, min(self.encoder_cache.max_bytes, each * len(self.examples)) - self.encoder_cache.kept_bytes)

    def choose_micro_batch_size(self, parameters: Iterable[Tensor], batch_size: int) -> None:
        """Set `micro_batch_size` if it is None and the batch does not fit into memory; warn of what does not fit."""
        fixed = training_bytes(parameters)
        per_example = self.activation_bytes()
        free = free_bytes(self.vlp) - self.expected_cache_bytes()
        fits = max(1, int((USABLE_MEMORY * free - fixed) // max(per_example, 1)))
        size = min(self.micro_batch_size or batch_size, batch_size)
        message = ""
        if self.micro_batch_size is None and fits < size:
            size = self.micro_batch_size = 1 << (fits.bit_length() - 1)  # a power of two
            message = f"memory: {batch_size} examples at a time do not fit: gradients are accumulated over {size} at a time"
        if fixed + size * per_example > free:
            gib = (fixed + size * per_example) / 2**30
            message = (
                f"memory: {size} examples at a time take {gib:.2f} GiB next to the model, {free / 2**30:.2f} GiB are free: "
                "use a smaller micro_batch_size, or gradient_checkpointing=True"
            )
        if message and is_main_process():
            warnings.warn(message, stacklevel=2)


def resolve_defaults(config: Config, model: AdaptedModel) -> tuple[Config, str]:
    """Return the settings with learning rates and batch size filled in, and a line that describes them."""
    origin = model.backbone.origin.config
    name = "" if origin is None else origin.model
    # The paper's values are for models of its size alone.
    paper = PAPER.get((name, model.task.name)) if model.backbone.vlp.size == "base" else None
    defaults: dict[str, Any] = dict.fromkeys(("learning_rate", "head_learning_rate"), config.default_learning_rate)
    if paper is not None:
        defaults["learning_rate"] = paper.learning_rate * paper.fusion_multiplier
        defaults["head_learning_rate"] = paper.learning_rate * paper.head_multiplier
        defaults["batch_size"] = paper.batch_size
    missing = {field: value for field, value in defaults.items() if getattr(config, field) is None}
    config = dataclasses.replace(config, **missing)
    examples = config.batch_size or model.task.examples_for_pairs(config.pairs_per_step)
    line = (
        f"{config.steps} steps of {examples} examples, learning rate {config.learning_rate:g}, of the head "
        f"{config.head_learning_rate:g}"
    )
    if paper is None:
        return config, line
    if missing:
        line += ": defaults of the paper"
    size = model.task.processor.image_size
    if paper.image_size is not None and size != paper.image_size:
        line += f"; images of {size} px, the paper has image_size={paper.image_size}"
    return config, line


def check_training(backbone: Backbone, task: Task, hardware: Hardware, itm_weight: float) -> None:
    """Raise ValueError before a search or training if the model, the task or the device does not support the settings."""
    if backbone.vlp.untrainable:
        raise ValueError(f"This model cannot be trained: {backbone.vlp.untrainable} Search it without training.")
    if itm_weight:
        task.matching_loss(backbone.heads)
    check_precision(backbone.vlp.device, hardware)


def make_trainer(step_loss: StepLoss, hardware: Hardware, **settings: Any) -> Trainer:
    """Return the `Trainer` of a `StepLoss`, and set the loss's micro-batch size to what fits in memory.

    Trackers write to the folder of the checkpoint. `settings` are those of `Trainer`.
    """
    step_loss.vlp.gradient_checkpointing = hardware.gradient_checkpointing
    accelerator = make_accelerator(hardware, step_loss.vlp.device, settings["checkpoint"] and settings["checkpoint"].parent)
    parameters = [p for group in settings["optimizer"].param_groups for p in group["params"]]
    with accelerator.autocast():
        step_loss.choose_micro_batch_size(parameters, -(-step_loss.batch_size // world_size()))
    modules = {"vlp": step_loss.vlp, "head": step_loss.head}
    return Trainer(modules, accelerator=accelerator, prefetcher=step_loss.prefetcher, **settings)


def make_loss_and_trainer(
    model: AdaptedModel,
    examples: Sequence[Any],
    config: TrainingConfig,
    checkpoint: Path | None,
    encoder_cache: EncoderCache | None = None,
) -> tuple[StepLoss, Trainer]:
    """Return the loss of a step and the `Trainer` of the parameters of model and head that require a gradient."""
    config, _ = resolve_defaults(config, model)
    batch_size = min(config.batch_size or model.task.examples_for_pairs(config.pairs_per_step), len(examples))
    step_loss = StepLoss(model, examples, batch_size, config.seed, False, encoder_cache, config, config.itm_weight)
    groups = (
        ([p for p in model.backbone.vlp.parameters() if p.requires_grad], config.learning_rate or 0.0),
        (list(own_parameters(model.backbone.vlp, model.head).values()), config.head_learning_rate or 0.0),
    )
    trainer = make_trainer(
        step_loss,
        config,
        optimizer=adamw(groups, WEIGHT_DECAY),
        steps=config.steps,
        schedule=partial(learning_rate_factor, steps=config.steps, warmup=config.warmup),
        checkpoint=checkpoint,
        save_every=config.save_every,
    )
    return step_loss, trainer
