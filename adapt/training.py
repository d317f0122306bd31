"""The training loop that pretrain, supernet and fine-tuning share: optimizer, schedule, checkpoints, exact resume."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from das_gym.adapt.hardware import ONE_DEVICE, Devices, Hardware
from das_gym.adapt.plateau import CHECKS, Plateau
from das_gym.adapt.reading_ahead import ReadingAhead
from torch import Tensor, nn

from das_gym.config import build, check_names, choice
from das_gym.files import write_bytes
from das_gym.models.tensor_files import check_archive, check_finite, load_plain
from das_gym.processes import is_first, rank, world
from das_gym.progress import progress

Log = Callable[[str, float, int], None]
"""Called with name, value and step."""

StepResult = dict[str, Tensor]
"""Losses and other numbers of a step, by name; `loss` is the one that is minimised."""

Step = Callable[[int], StepResult | Iterable[StepResult]]
"""From the index of a step to its result, or to parts of it that add up to it and are made one after the other.

What several processes add up to is averaged, so that each gives its parts times how many there are.
"""


SCHEDULES = ("polynomial", "cosine")
POSITIVE = (math.ulp(0.0), math.inf)
TRAINING_RANGES = {
    "steps": POSITIVE,
    "batch_size": POSITIVE,
    "learning_rate": POSITIVE,
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "save_every": POSITIVE,
    "seed": (0, 2**32 - 1),
}
"""Least and greatest value of what every training has."""


def check_ranges(config: object, **ranges: tuple[float, float]) -> None:
    """Refuse a field outside its range; None, where a field may be that, is in every range.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and (not least <= value <= most or math.isinf(value)):
            allowed = "more than 0" if (least, most) == POSITIVE else f"{least:g}..{most:g}"
            raise ValueError(f"{name}={value} is not allowed; give {allowed}")


@dataclass(frozen=True)
class TrainingConfig(Hardware):
    """Settings of training adapters and head, and of `Hardware`; the defaults are those of fine-tuning.

    Attributes:
        seed: Random seed, of new parameters and the order of examples among others.
        steps: Number of training steps.
        batch_size: Examples per step. None means about 64 pairs of text and image (96 in `supernet`), or the paper's batch
            size for a model of base size.
        learning_rate: Peak learning rate of adapters, poolers and token types. None means 1e-3 (2e-3 in `supernet`), or the
            paper's for a model of base size.
        head_learning_rate: Peak learning rate of the task head. None means 1e-3 (2e-3 in `supernet`), or the paper's for a
            model of base size.
        warmup: Fraction of the steps in which the learning rate rises, 0..1.
        weight_decay: Weight decay of matrices. Biases and other vectors have none.
        itm_weight: Weight of the image-text-matching loss of the checkpoint's frozen matching head, for retrieval. 0 leaves
            it out.
        power: Power of the polynomial schedule.
        schedule: How the learning rate falls to 0 after the warm-up.
        save_every: Steps between checkpoints.
        patience: Stop early: if the loss on the reward split has not fallen in so many of 40 checks in a row, the learning
            rate decays and training ends. None trains all steps.
    """

    group: ClassVar[str] = "Training"

    pairs_per_step: ClassVar[int] = 64
    usual_rate: ClassVar[float] = 1e-3

    seed: int = 0
    steps: int = 300
    batch_size: int | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    itm_weight: float = 0.0
    power: float = 1.0
    schedule: str = choice("polynomial", SCHEDULES)
    save_every: int = 100
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, **TRAINING_RANGES, power=(0.0, math.inf), itm_weight=(0.0, math.inf), patience=(1, CHECKS))
        check_names([self.schedule], SCHEDULES, "schedule")


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own, decayed but for biases and vectors."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


def adamw(groups: Iterable[Group], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.98; no weight decay on biases, LayerNorms and other vectors.

    Source: METER's optimizer (REFERENCE values of the paper's code).
    """
    options = []
    for group in groups:
        matrices = [p for p in group.parameters if p.ndim > 1]
        vectors = [p for p in group.parameters if p.ndim <= 1]
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if parameters:
                options.append({"params": parameters, "lr": group.learning_rate, "weight_decay": decay})
    return torch.optim.AdamW(options, betas=(0.9, 0.98), eps=1e-8)


def decay(step: int, steps: int, warmup: float, power: float = 1.0, schedule: str = "polynomial") -> float:
    """Factor of the learning rate: linear warm-up over a share of the steps, then down to 0.

    By a polynomial of a power (METER's and ViLT's), or by half a cosine (LLaVA's), which has none.
    """
    first = max(1, round(steps * warmup))
    if step < first:
        return (step + 1) / first
    done = (step - first) / max(1, steps - first)
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else (1 - done) ** power


def prefixed(part: str, log: Log | None) -> Log | None:
    """A log under whose names `part` does not mix with others."""
    return None if log is None else lambda name, value, step: log(f"{part}.{name}", value, step)


class Companion(Protocol):
    """Something with a state of plain JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds."""

    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, int]
    rng: Tensor
    logged: list[tuple[str, float, int]]
    window: dict[str, list[float]]
    companions: dict[str, str]
    device_rng: Tensor | None = None
    scaler: dict[str, Any] = field(default_factory=dict)


def _check_sizes(kept: Iterable[Mapping[str, Any]]) -> None:
    """Refuse tensors that stand for more numbers than a checkpoint has: an optimizer copies what it is given.

    Raises:
        ValueError: one does.
    """
    for value in (value for each in kept for value in each.values() if isinstance(value, Tensor)):
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is larger than what was saved of it")


class Trainer:
    """Runs a number of steps, each a function of its index alone, and can stop and go on anywhere.

    Args:
        modules: What is trained and saved, by name. Only parameters that require a gradient are saved.
        optimizer: Its learning rates are the peaks of the schedule.
        steps: How many there are.
        schedule: From a step to the factor of the learning rates.
        checkpoint: File to save to and to go on from; None saves nothing.
        save_every: Steps between checkpoints.
        max_norm: Gradients are clipped to this norm.
        companions: What else changes with the steps, by name: saved and restored with the rest.
        devices: Which processes train together, and in what precision; None is this one alone, in the model's own.
        plateau: Ends the training before its last step, where nothing gets better; its `factor` is the schedule.
        reading: What reads pictures for the steps; it is closed when they end, however they end.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        steps: int,
        schedule: Callable[[int], float],
        checkpoint: Path | None = None,
        save_every: int = 500,
        max_norm: float = 1.0,
        companions: Mapping[str, Companion] | None = None,
        devices: Devices | None = None,
        plateau: Plateau | None = None,
        reading: ReadingAhead | None = None,
    ) -> None:
        first = next((p for module in modules.values() for p in module.parameters()), torch.empty(0))
        self.devices = devices or Devices(ONE_DEVICE, first.device)
        self.companions = {**(companions or {}), **({} if plateau is None else {"plateau": plateau})}
        self.plateau = plateau
        self.reading = reading
        self.optimizer = optimizer
        self.steps = steps
        self.checkpoint = checkpoint
        self.save_every = save_every
        self.max_norm = max_norm
        self.step = 0
        self._passed = 0
        self._logged: list[tuple[str, float, int]] = []
        self._window: dict[str, list[float]] = {}
        self._trained = {
            f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters() if p.requires_grad
        }
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    def run(
        self,
        step_function: Step,
        title: str,
        log: Log | None = None,
        about: Callable[[], str] | None = None,
    ) -> None:
        """Run the steps that are left.

        A step whose loss, gradient or outcome is not finite ends the run: it is not taken, or not kept in the checkpoint.

        Args:
            step_function: From the step's index to its losses.
            title: Of the progress bar.
            log: Called with name, value averaged over 50 steps, and step; after a resume also with what was logged before.
            about: What the last step was of, in words, for the error of a step that went wrong.

        Raises:
            FloatingPointError: the loss, its gradient or a parameter is not finite any more.
        """
        self._resume()
        if log is not None:
            for entry in self._logged:
                log(*entry)
        run = partial(self._run, step_function, title, log, about)
        try:
            if self.reading is None:
                run()
            else:
                self.reading.during(run)
        finally:
            self.devices.end()

    def _run(self, step_function: Step, title: str, log: Log | None, about: Callable[[], str] | None) -> None:
        with progress(self.steps, title, unit="step", initial=self.step) as bar:
            while self.step < self.end:
                for name, value in self._one(step_function, about).items():
                    self._window.setdefault(name, []).append(value)
                bar.set_postfix_str(f"loss {math.fsum(self._window['loss']) / len(self._window['loss']):.3f}", refresh=False)
                bar.update()
                if self.plateau is not None:
                    self.plateau.after(self.step)
                if self.step % 50 == 0 or self.step == self.end:
                    self._report(title, log)
                if self.step % self.save_every == 0 or self.step == self.end:
                    self._check_parameters()
                if self.step % self.save_every == 0:
                    self._save()

    def _report(self, title: str, log: Log | None) -> None:
        """Log the means since the last report."""
        means = {name: math.fsum(values) / len(values) for name, values in self._window.items()}
        self._window.clear()
        for name, value in means.items():
            self._logged.append((name, value, self.step))
            if log is not None:
                log(name, value, self.step)
        self.devices.track({f"{title}/{name}": value for name, value in means.items()}, self.step)

    @property
    def end(self) -> int:
        """The last step, as far as is known."""
        return self.steps if self.plateau is None else self.plateau.end

    def _one(self, step_function: Step, about: Callable[[], str] | None) -> dict[str, float]:
        scaler, trained, sums = self.devices.scaler, list(self._trained.values()), dict[str, float]()
        self.optimizer.zero_grad(set_to_none=True)
        for result in self._parts(step_function):
            scaler.scale(result["loss"]).backward()
            for name, value in result.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        if world() > 1:
            sums = dict(zip(sums, self.devices.mean(torch.tensor([*sums.values()]).to(trained[0])).tolist(), strict=True))
        of_what = f", {about()}" if about is not None else ""
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(f"the loss is {sums['loss']} at step {self.step}{of_what}: try a lower learning rate")
        self.devices.average(trained)
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, self.max_norm)
        if not torch.isfinite(norm):
            self._passed += 1
            if scaler.get_scale() <= 1 or self._passed == self.steps:  # else a scaler passes the step by, and halves itself
                raise FloatingPointError(
                    f"the norm of the gradient is {norm.item()} at step {self.step}{of_what}: try a lower learning rate"
                    + (", or mixed_precision=bf16" if scaler.is_enabled() else "")
                )
        scaler.step(self.optimizer)
        scaler.update()
        self._scheduler.step()
        self.step += 1
        return sums

    def _parts(self, step_function: Step) -> Iterator[StepResult]:
        """The parts of the step, each made in the precision that is wanted, and used up before the next one is made."""
        with self.devices.autocast():
            given = step_function(self.step)
        parts: Iterator[StepResult] = iter((given,) if isinstance(given, dict) else given)
        while True:
            with self.devices.autocast():
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _check_parameters(self) -> None:
        for name, parameter in self._trained.items():
            if not torch.isfinite(parameter.detach()).all():
                raise FloatingPointError(
                    f"{name} is not finite any more after step {self.step - 1}: try a lower learning rate"
                )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        rng = self.devices.each(torch.get_rng_state())
        device_rng = None
        if self.devices.device.type == "cuda":
            device_rng = self.devices.each(torch.cuda.get_rng_state(self.devices.device))
        if not is_first():
            return
        buffer = io.BytesIO()
        state = {
            "step": self.step,
            "parameters": {name: p.detach() for name, p in self._trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self._scheduler.last_epoch},
            "rng": rng[0] if world() == 1 else rng,
            "device_rng": device_rng,
            "scaler": self.devices.scaler.state_dict(),
            "logged": self._logged,
            "window": self._window,
            "companions": {name: json.dumps(companion.state_dict()) for name, companion in self.companions.items()},
        }
        torch.save(state, buffer)
        write_bytes(self.checkpoint, buffer.getvalue())

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        try:
            check_archive(self.checkpoint)
            state = build(_State, load_plain(self.checkpoint), "entry")
            _check_sizes(state.optimizer["state"].values())
            found = {name: (p.shape, p.dtype) for name, p in state.parameters.items()}
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{self.checkpoint} is damaged ({error}): remove it to begin anew") from error
        same = found == {name: (p.shape, p.dtype) for name, p in self._trained.items()}
        if not same or not 0 <= state.step <= self.steps:
            raise ValueError(
                f"{self.checkpoint} was saved by another configuration: remove it, or restore that configuration"
            )
        check_finite(state.parameters.items(), self.checkpoint)
        processes = 1 if state.rng.ndim == 1 else len(state.rng)
        if processes != world():
            raise ValueError(f"{self.checkpoint} was saved by {processes} processes, and here are {world()}: start as many")
        try:
            self._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{self.checkpoint} is damaged ({error!r}): remove it to begin anew") from error

    def _restore(self, state: _State) -> None:
        """Go on from what `_save` wrote."""
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state.parameters[name])
        self.optimizer.load_state_dict(state.optimizer)
        for owner, kept in self.optimizer.state.items():
            tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
            check_finite(tensors.items(), cast(Path, self.checkpoint))
            if any(value.shape not in (owner.shape, torch.Size()) for value in tensors.values()):
                raise ValueError("the optimizer's state is of other shapes than the parameters")
        for name, companion in self.companions.items():
            companion.load_state_dict(json.loads(state.companions[name]))
        self.step = state.step
        self._logged, self._window = state.logged, state.window
        self._scheduler.last_epoch = self.step
        self.devices.scaler.load_state_dict(state.scaler)
        torch.set_rng_state(state.rng if world() == 1 else state.rng[rank()])
        if state.device_rng is not None and self.devices.device.type == "cuda":
            torch.cuda.set_rng_state(state.device_rng[rank()], self.devices.device)
