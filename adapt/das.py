"""The paper's pipeline: search for a mask while adapters train, then fine-tune the found subnet from new adapters.

Every training step draws a mask and updates through it. After the warm-up epochs, every few steps a turn scores distinct
masks on the same examples, and the chooser learns from exp(-loss). Source: DAS (arXiv 2309.01479), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from das_gym.adapt.hardware import ONE_DEVICE, Devices, Hardware
from das_gym.adapt.memory import make_room
from das_gym.adapt.paper import DASSettings
from das_gym.adapt.step_loss import StepLoss
from das_gym.adapt.training import Companion, Group, Log, StepResult, Trainer, adamw, decay

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.engine.broken import told_examples, told_mask
from das_gym.engine.evaluator import Evaluator
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, Backbone, load_backbone, new_head, shuffled, takes, task_class
from das_gym.processes import of_first, world
from das_gym.tasks.base import Task


class Chooser(Companion, Protocol):
    """Who draws masks and learns from rewards: the paper's bandit, or any ask/tell agent with preferences."""

    preferences: np.ndarray | None

    def ask(self, n: int) -> np.ndarray:
        """Up to `n` distinct masks, (m, n_layers) bool."""
        ...

    def tell(self, masks: np.ndarray, rewards: np.ndarray) -> None:
        """Learn from (m,) rewards."""
        ...

    def best(self) -> np.ndarray:
        """(n_layers,) bool."""
        ...


@dataclass(frozen=True)
class JointTurn:
    """Masks that were scored on the same examples.

    Attributes:
        step: Training steps before it.
        masks: 0 or 1 a layer.
        losses: nats.
        rewards: exp(-loss).
        preferences: The chooser's, after it; None for one without.
    """

    step: int
    masks: list[list[int]]
    losses: list[float]
    rewards: list[float]
    preferences: list[float] | None


def new_model(config: ProblemConfig, splits: Splits[Any], settings: DASSettings, seed: int) -> AdaptedModel:
    """The frozen model with new adapters and a new head, in memory of its own."""
    backbone = new_backbone(config, settings)
    kind = task_class(config.task)
    task = kind(backbone.processor, kind.choose_labels(splits))
    torch.manual_seed(seed)
    return AdaptedModel(backbone, new_head(backbone, task), task)


def new_backbone(config: ProblemConfig, settings: DASSettings) -> Backbone:
    """The frozen model with new adapters.

    Raises:
        ValueError: as `load_backbone`: it does not take what the settings ask of it.
    """
    widths = {name: getattr(settings, name) for name in ("bottleneck", "skip_bottleneck")} if config.checkpoint else {}
    asked = {name: width for name, width in widths.items() if width is not None}
    if settings.dropout or takes(config.model, "dropout"):
        asked["dropout"] = settings.dropout
    if settings.projector_learning_rate:
        asked["projector"] = True
    backbone = load_backbone(config, **asked)
    if settings.dropout:
        backbone.vlp.freeze(dropout=True)
    return backbone


class Training:
    """Training one model as the pipeline does, and scoring masks while it trains.

    Args:
        model: What trains.
        splits: The data.
        settings: How.
        seed: Of the order of examples and of augmentation.
        hardware: What it runs on.

    Attributes:
        step_loss: The loss of a step.
    """

    def __init__(
        self,
        model: AdaptedModel,
        splits: Splits[Any],
        settings: DASSettings,
        seed: int,
        hardware: Hardware = ONE_DEVICE,
    ) -> None:
        self.model = model
        self.hardware = hardware
        model.backbone.vlp.gradient_checkpointing = hardware.gradient_checkpointing
        self.settings = settings
        examples = [*splits.train, *(splits.reward if settings.train_on_reward else ())]
        batch_size = min(settings.batch_size, len(examples))
        backbone, head, task = model.backbone, model.head, model.task
        self.step_loss = StepLoss(
            backbone,
            head,
            task,
            examples,
            batch_size,
            seed,
            settings.augment,
            hardware=hardware,
            itm_weight=settings.itm_weight,
        )
        self.evaluator = Evaluator(backbone.vlp, head, task)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training examples."""
        return len(self.step_loss.examples) // self.step_loss.batch_size

    @torch.no_grad()
    def losses(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        """(m,) float64 mean loss of each mask, nats: the task's own; with dropout, each mask drawing its own, training's."""
        if not self.settings.reward_dropout:
            with self._evaluating():
                return self.evaluator.losses(masks, examples)
        step_loss, targets = self.step_loss, self.step_loss.targets(examples)
        return np.array([float(step_loss.losses(examples, targets, mask)[0].double().mean()) for mask in masks])

    def trainer(
        self, steps: int, checkpoint: Path | None, save_every: int, rate: float | None = None, **companions: Any
    ) -> Trainer:
        """Runs `steps` steps with the settings' optimizer and schedule, and a learning rate if not theirs."""
        settings, vlp = self.settings, self.model.backbone.vlp
        rate = settings.learning_rate if rate is None else rate
        named = [(name, p) for name, p in vlp.named_parameters() if p.requires_grad]
        fusion = [p for name, p in named if "adapter" in name or "pooler" in name]
        projector = [p for name, p in named if any(part in name for part in vlp.projector)]
        others = {id(p) for p in (*fusion, *projector)}
        groups = [
            Group([p for _, p in named if id(p) not in others], rate),
            Group(projector, settings.projector_learning_rate),
            Group(fusion, rate * settings.fusion_multiplier),
            Group(list(own_parameters(vlp, self.model.head).values()), rate * settings.head_multiplier),
        ]
        schedule = partial(decay, steps=steps, warmup=settings.warmup, power=settings.power, schedule=settings.schedule)
        modules = {"vlp": vlp, "head": self.model.head}
        optimizer = adamw(groups, settings.weight_decay)
        parameters = [p for group in groups for p in group.parameters]
        devices = Devices(self.hardware, vlp.device, checkpoint and checkpoint.parent)
        with devices.autocast():
            print(make_room(self.step_loss, parameters, -(-self.step_loss.batch_size // world())))
        return Trainer(
            modules,
            optimizer,
            steps,
            schedule,
            checkpoint,
            save_every,
            companions=companions,
            devices=devices,
            reading=self.step_loss.reading,
        )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modules = (self.model.backbone.vlp, self.model.head)
        before = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module, mode in zip(modules, before, strict=True):
                module.train(mode)


class _Turns:
    """The turns so far, kept with the trainer's checkpoints."""

    def __init__(self) -> None:
        self.history: list[JointTurn] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": [vars(turn) for turn in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = [build(JointTurn, turn) for turn in state["history"]]


def reward_examples(task: Task, splits: Splits[Any], settings: DASSettings) -> tuple[Any, ...]:
    """What scores masks."""
    source = splits.reward if settings.reward_split == "reward" else splits.train
    count = settings.reward_examples
    return shuffled(task, source, count) if settings.reward_shuffled else tuple(source[:count])


def joint_search(
    training: Training,
    splits: Splits[Any],
    chooser: Chooser,
    checkpoint: Path | None = None,
    log: Log | None = None,
    on_turn: Callable[[JointTurn], Any] | None = None,
    save_every: int = 100,
) -> tuple[np.ndarray, list[JointTurn]]:
    """Search while training.

    Args:
        training: The model with all its layers and adapters; it is trained in place.
        splits: The data.
        chooser: Draws masks and learns.
        checkpoint: File for intermediate checkpoints, the chooser's state among them; what lies there is gone on from.
        log: Called with name, value and step.
        on_turn: Called after every turn.
        save_every: Steps between checkpoints.

    Returns:
        The chooser's mask and all turns.

    Raises:
        FloatingPointError: a loss that is not a number.
    """
    settings, turns = training.settings, _Turns()
    examples = reward_examples(training.model.task, splits, settings)
    first_turn = settings.warmup_epochs * training.steps_per_epoch

    def step(index: int) -> Iterator[StepResult]:
        if index >= first_turn and (index - first_turn) % settings.steps_per_turn == 0:
            turns.history.append(_take_turn(training, chooser, index, examples))
            if on_turn is not None:
                on_turn(turns.history[-1])
        return training.step_loss.parts(index, chooser.ask(1)[0])

    training.model.head.train()
    steps = settings.search_epochs * training.steps_per_epoch
    trainer = training.trainer(steps, checkpoint, save_every, chooser=chooser, turns=turns)
    trainer.run(step, "search while training", log, training.step_loss.about)
    return chooser.best(), turns.history


def _take_turn(training: Training, chooser: Chooser, step: int, examples: Sequence[Any]) -> JointTurn:
    masks = chooser.ask(training.settings.masks_per_turn)
    losses = of_first(lambda: training.losses(masks, examples))  # with dropout, each process would see others
    if not np.isfinite(losses).all():
        mask = masks[~np.isfinite(losses)][0]
        raise FloatingPointError(
            f"the losses of a turn are {losses.tolist()} at step {step}, the first that is none under {told_mask(mask)}, on "
            f"{told_examples([example.key for example in examples])}: try a lower learning rate"
        )
    rewards = np.exp(-losses)
    chooser.tell(masks, rewards)
    preferences = None if chooser.preferences is None else chooser.preferences.tolist()
    return JointTurn(step, masks.astype(int).tolist(), losses.tolist(), rewards.tolist(), preferences)


def finetune_found(
    training: Training, checkpoint: Path | None = None, log: Log | None = None, save_every: int = 100, name: str = "subnet"
) -> None:
    """Train a pruned model for the settings' epochs."""
    steps = training.settings.finetune_epochs * training.steps_per_epoch
    training.model.head.train()
    trainer = training.trainer(steps, checkpoint, save_every, training.settings.finetune_learning_rate)
    trainer.run(training.step_loss.parts, f"fine-tuning, {name}", log, training.step_loss.about)
