"""The paper's pipeline: search for a mask while adapters train, then fine-tune the found subnet from new adapters.

Every training step draws a mask and updates through it. After the warm-up epochs, every few steps a turn scores distinct
masks on the same examples, and the chooser learns from exp(-loss). Source: DAS (arXiv 2309.01479), sections 3.2 and 3.3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.finetuning import with_new_head
from das_gym.adapt.hardware import ONE_DEVICE
from das_gym.adapt.paper import DASSettings
from das_gym.adapt.phases import training_phases
from das_gym.adapt.settings import Hardware
from das_gym.adapt.step_loss import StepLoss, make_trainer
from das_gym.adapt.training import Log, StepResult, Trainer, adamw, learning_rate_factor
from das_gym.agents.ask_tell.bandit import Bandit
from das_gym.agents.ask_tell.base import Agent

from das_gym.commands.progress import Phase
from das_gym.commands.settings import build
from das_gym.data.splits import Splits
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.scores import format_examples, format_mask
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, accepts_setting, load_backbone, shuffled
from das_gym.processes import run_on_main_process
from das_gym.tasks.base import Task


@dataclass(frozen=True)
class JointTurn:
    """Masks (1 = skipped) that were scored on the same examples after `step` training steps.

    `preferences` are the bandit's after the turn, None for another agent.
    """

    step: int
    masks: list[list[int]]
    losses: list[float]
    rewards: list[float]
    preferences: list[float] | None


def new_model(config: ProblemConfig, splits: Splits[Any], settings: DASSettings, seed: int) -> AdaptedModel:
    """Load the frozen model, with new adapters and a new head."""
    options: dict[str, Any] = {}
    if config.checkpoint:
        widths = {"bottleneck": settings.bottleneck, "skip_bottleneck": settings.skip_bottleneck}
        options |= {name: width for name, width in widths.items() if width is not None}
    if settings.dropout or accepts_setting(config.model, "dropout"):
        options["dropout"] = settings.dropout
    if settings.projector_learning_rate:
        options["projector"] = True
    backbone = load_backbone(config, **options)
    if settings.dropout:
        backbone.vlp.freeze(dropout=True)
    # The head of every copy starts from the same values.
    torch.manual_seed(seed)
    return with_new_head(backbone, config.task, splits)


class Training:
    """Trains one model as the pipeline does, and scores masks while it trains."""

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
        self.settings = settings
        examples = [*splits.train, *(splits.reward if settings.train_on_reward else ())]
        size = min(settings.batch_size, len(examples))
        self.step_loss = StepLoss(
            model, examples, size, seed, settings.augment, hardware=hardware, itm_weight=settings.itm_weight
        )
        self.evaluator = Evaluator(model.backbone.vlp, model.head, model.task)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the training examples."""
        return len(self.step_loss.examples) // self.step_loss.batch_size

    @torch.no_grad()
    def losses(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        """Return the (m,) float64 mean loss of each mask, in nats.

        With `reward_dropout` it is the training loss, with other dropout for each mask; else the task's loss.
        """
        if not self.settings.reward_dropout:
            modules = (self.model.backbone.vlp, self.model.head)
            # The engine scores without dropout. Its mode is put back afterwards, since training continues.
            modes = [module.training for module in modules]
            try:
                for module in modules:
                    module.eval()
                return self.evaluator.losses(masks, examples)
            finally:
                for module, mode in zip(modules, modes, strict=True):
                    module.train(mode)
        targets = self.step_loss.targets(examples)
        return np.array([float(self.step_loss.losses(examples, targets, mask)[0].cpu().double().mean()) for mask in masks])

    def trainer(
        self, steps: int, checkpoint: Path | None, save_every: int, rate: float | None = None, turns: "Turns | None" = None
    ) -> Trainer:
        """Return the `Trainer`, with the settings' optimizer and schedule, and another learning rate if given."""
        settings = self.settings
        vlp = self.model.backbone.vlp
        rate = settings.learning_rate if rate is None else rate
        others, projector, fusion = [], [], []
        # The multipliers of the paper's settings go by parts of names.
        for name, parameter in vlp.named_parameters():
            if not parameter.requires_grad:
                continue
            if "adapter" in name or "pooler" in name:
                fusion.append(parameter)
            elif any(part in name for part in vlp.projector):
                projector.append(parameter)
            else:
                others.append(parameter)
        groups = [
            (others, rate),
            (projector, settings.projector_learning_rate),
            (fusion, rate * settings.fusion_multiplier),
            (list(own_parameters(vlp, self.model.head).values()), rate * settings.head_multiplier),
        ]
        return make_trainer(
            self.step_loss,
            self.hardware,
            optimizer=adamw(groups, settings.weight_decay),
            steps=steps,
            schedule=partial(learning_rate_factor, steps=steps, warmup=settings.warmup, schedule=settings.schedule),
            checkpoint=checkpoint,
            save_every=save_every,
            stateful=None if turns is None else {"turns": turns},
        )


class Turns:
    """The turns of a chooser so far, kept with the trainer's checkpoints."""

    def __init__(self, chooser: Agent) -> None:
        self.chooser = chooser
        self.history: list[JointTurn] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the turns, and the chooser's random state, as JSON values."""
        return {"history": [vars(turn) for turn in self.history], "rng": self.chooser.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the turns that `state_dict` returned; a new chooser receives the rewards of all of them."""
        self.history = [build(JointTurn, turn) for turn in state["history"]]
        for turn in self.history:
            self.chooser.tell(np.array(turn.masks, dtype=bool), np.array(turn.rewards))
        self.chooser.rng.bit_generator.state = state["rng"]


def reward_examples(task: Task, splits: Splits[Any], settings: DASSettings) -> tuple[Any, ...]:
    """Return the examples on which each turn scores masks, of the split and in the order that the settings name."""
    source = splits.reward if settings.reward_split == "reward" else splits.train
    count = settings.reward_examples
    return shuffled(task, source, count) if settings.reward_shuffled else tuple(source[:count])


def joint_search(
    training: Training,
    splits: Splits[Any],
    chooser: Agent,
    checkpoint: Path | None = None,
    log: Log | None = None,
    on_turn: Callable[[JointTurn], Any] | None = None,
    save_every: int = 100,
) -> tuple[np.ndarray, list[JointTurn]]:
    """Train the model while a chooser searches; return its best mask and all turns. An existing checkpoint is resumed."""
    settings = training.settings
    turns = Turns(chooser)
    examples = reward_examples(training.model.task, splits, settings)
    first_turn = settings.warmup_epochs * training.steps_per_epoch

    def step(index: int) -> Iterator[StepResult]:
        # A turn depends on the index of its step alone, so a resumed search takes the same ones.
        if index >= first_turn and (index - first_turn) % settings.steps_per_turn == 0:
            turns.history.append(_take_turn(training, chooser, index, examples))
            if on_turn is not None:
                on_turn(turns.history[-1])
        return training.step_loss.parts(index, chooser.ask(1)[0])

    training.model.head.train()
    steps = settings.search_epochs * training.steps_per_epoch
    trainer = training.trainer(steps, checkpoint, save_every, turns=turns)
    trainer.run(step, "search while training", log, training.step_loss.describe_step)
    return chooser.best(), turns.history


def phases(training: Training, splits: Splits[Any], models: int) -> list[Phase]:
    """Return the phases of the pipeline up to its evaluation, where `models` models are fine-tuned; masks are random.

    The training cannot be used afterwards.
    """
    settings = training.settings
    n_layers = len(training.model.backbone.vlp.layers)
    rng = np.random.default_rng(0)
    masks = np.array([rng.permutation(n_layers) < settings.skip_num for _ in range(settings.masks_per_turn)])
    examples = reward_examples(training.model.task, splits, settings)
    per_epoch = training.steps_per_epoch
    turns = (settings.search_epochs - settings.warmup_epochs) * per_epoch / settings.steps_per_turn
    trainer = training.trainer(1, None, 1)
    size = training.evaluator.batch_size
    scoring = Phase("turns", len(examples), lambda count: training.losses(masks, examples[:count]), size, repeats=turns)
    searching = settings.search_epochs * per_epoch
    tuning = models * settings.finetune_epochs * per_epoch
    return [
        scoring,
        *training_phases("search", training.step_loss, trainer, searching, masks[0]),
        *training_phases("fine-tuning", training.step_loss, trainer, tuning, masks[0], encodes=False),
    ]


def _take_turn(training: Training, chooser: Agent, step: int, examples: Sequence[Any]) -> JointTurn:
    masks = chooser.ask(training.settings.masks_per_turn)
    # On the main process alone: with dropout, each process would compute other losses.
    losses = run_on_main_process(lambda: training.losses(masks, examples))
    # One NaN would make all preferences NaN, and a checkpoint would keep them.
    if not np.isfinite(losses).all():
        mask = masks[~np.isfinite(losses)][0]
        raise FloatingPointError(
            f"The training diverged: the losses of a turn are {losses.tolist()} at step {step}, the first under "
            f"{format_mask(mask)}, on {format_examples([example.key for example in examples])}. Try a lower learning rate."
        )
    rewards = np.exp(-losses)
    chooser.tell(masks, rewards)
    preferences = chooser.preferences.tolist() if isinstance(chooser, Bandit) else None
    return JointTurn(step, masks.astype(int).tolist(), losses.tolist(), rewards.tolist(), preferences)


def finetune_subnet(
    training: Training, checkpoint: Path | None = None, log: Log | None = None, save_every: int = 100, name: str = "subnet"
) -> None:
    """Train a pruned model for the settings' epochs."""
    steps = training.settings.finetune_epochs * training.steps_per_epoch
    training.model.head.train()
    trainer = training.trainer(steps, checkpoint, save_every, training.settings.finetune_learning_rate)
    trainer.run(training.step_loss.parts, f"fine-tuning, {name}", log, training.step_loss.describe_step)
