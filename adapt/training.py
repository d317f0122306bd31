"""The training loop that supernet, fine-tuning and recovery share: optimizer, schedule, checkpoints, exact resume."""

import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from das_gym.adapt.hardware import ONE_DEVICE, make_accelerator
from das_gym.adapt.prefetching import Prefetcher
from torch import Tensor, nn

from das_gym.commands.progress import progress
from das_gym.files import write_bytes
from das_gym.models.inputs import to_widest
from das_gym.models.random_states import accelerators_of, random_states, restore_random_states
from das_gym.models.tensor_files import check_archive, check_finite
from das_gym.processes import is_main_process, rank, world_size

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.checkpoint.stateful import Stateful

Log = Callable[[str, float, int], None]
"""Called with name, value and step."""

StepResult = dict[str, Tensor]
"""Losses and metrics of a step, by name; `loss` is the one that is minimised."""

Step = Callable[[int], StepResult | Iterable[StepResult]]
"""From the index of a step to its result, or to parts that add up to it: gradients are accumulated over them.

Results of several processes are averaged, so each process multiplies its parts by the number of processes.
"""

WEIGHT_DECAY = 0.01
"""Weight decay of METER's and ViLT's configs."""

MAX_NORM = 1.0
"""Norm to which gradients are clipped."""

SAVE_SECONDS = 60.0
"""Time after which a checkpoint is written whatever the step: `save_every` steps of a large model take an hour."""

SLOW_SAVE = 3.0
"""Seconds that a checkpoint may take; if it takes longer, that time grows in proportion."""

LOG_EVERY = 50
"""Steps whose means are logged as one value."""


def adamw(groups: Iterable[tuple[Sequence[nn.Parameter], float]], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW for parameters with their learning rates, without weight decay for biases, LayerNorms and other vectors.

    Source: METER's optimizer.
    """
    options = []
    for parameters_of_rate, rate in groups:
        matrices = [p for p in parameters_of_rate if p.ndim > 1]
        vectors = [p for p in parameters_of_rate if p.ndim <= 1]
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if parameters:
                options.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(options, betas=(0.9, 0.98), eps=1e-8)


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str = "linear") -> float:
    """Return the factor, 0..1, of the peak learning rate: linear warm-up over a fraction of the steps, then down to 0.

    `linear` is METER's and ViLT's, `cosine` is LLaVA's.
    """
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done


def add_prefix(prefix: str, log: Log | None) -> Log | None:
    """Return a log function that adds a prefix to names, to distinguish several trainings."""
    return None if log is None else lambda name, value, step: log(f"{prefix}.{name}", value, step)


class Trainer:
    """Runs training steps. A step depends only on its index, so that a resumed training gives bit-identical weights.

    Precision, scaling, clipping and the mean over processes are accelerate's. The models are not wrapped in
    `DistributedDataParallel`: layers and heads are run one by one, but it averages only what its own `forward` computed, and
    with `find_unused_parameters=True`, which masks need, it searches the graph in each step. Checkpoints are our own:
    accelerate's hold the frozen weights too, use pickle for random states, and a kill may leave half of their files.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = adamw([(list(model.parameters()), 0.1)], weight_decay=0.01)
        >>> trainer = Trainer({"model": model}, optimizer, 10, lambda step: 1.0)
        >>> trainer.run(lambda step: {"loss": model(torch.ones(2, 3)).square().mean()}, "training")

    Args:
        modules: What is trained and saved, by name. Only parameters that require a gradient are saved.
        optimizer: Its learning rates are the peaks of the schedule.
        steps: Number of steps.
        schedule: From a step to the factor of the learning rates.
        checkpoint: File to save to and to resume from; None saves nothing.
        save_every: Steps between checkpoints. A single process also writes one `save_seconds` after the last one.
        stateful: What else changes with the steps, by name, with JSON values as state: saved and restored with the rest.
        accelerator: See `das_gym.adapt.hardware.make_accelerator`; None is one device in full precision.
        prefetcher: Reads images for the steps; it is closed when they end.
        save_seconds: See `save_every`.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        steps: int,
        schedule: Callable[[int], float],
        checkpoint: Path | None = None,
        save_every: int = 500,
        stateful: "Mapping[str, Stateful] | None" = None,
        accelerator: "Accelerator | None" = None,
        prefetcher: Prefetcher | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        # Frozen weights are in the checkpoint of the model, and are not saved again.
        self._trained = {
            f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters() if p.requires_grad
        }
        device = next(iter(self._trained.values()), torch.empty(0)).device
        self._devices = accelerators_of(modules.values())
        self.accelerator = accelerator or make_accelerator(ONE_DEVICE, device)
        # The plain scheduler: accelerate's takes a step for each process, while here all of them take one step together.
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)  # leaves out a step whose fp16 gradients overflowed
        self.steps = steps
        self.checkpoint = checkpoint
        self.save_every = save_every
        self.save_seconds = save_seconds
        self._next_save = math.inf
        self.stateful = dict(stateful or {})
        self.prefetcher = prefetcher
        self.step = 0
        self._overflows = 0
        self._logged: list[tuple[str, float, int]] = []
        self._window: dict[str, list[float]] = {}

    def run(
        self, step_function: Step, title: str, log: Log | None = None, describe_step: Callable[[], str] | None = None
    ) -> None:
        """Run the steps that are left.

        Args:
            step_function: Maps the step's index to its losses by name, or to an iterator of parts that add up to them.
            title: Title of the progress bar.
            log: Called with name, value averaged over 50 steps, and step. A resumed training logs earlier values again.
            describe_step: Returns what the last step was computed on, for the error message of a step that diverged.

        Raises:
            FloatingPointError: The loss, its gradient or a parameter is not finite; no checkpoint holds such a step.
        """
        if self.step == 0:  # else it is resumed already
            self.resume()
        log = log or (lambda name, value, step: None)
        for entry in self._logged:
            log(*entry)
        self._next_save = time.monotonic() + self.save_seconds
        try:
            with progress(self.steps, title, unit="step", initial=self.step) as bar:
                while self.step < self.steps:
                    for name, value in self.take_step(step_function, describe_step).items():
                        self._window.setdefault(name, []).append(value)
                    losses = self._window["loss"]
                    bar.set_postfix_str(f"loss {math.fsum(losses) / len(losses):.3f}", refresh=False)
                    bar.update()
                    if self.step % LOG_EVERY == 0 or self.step == self.steps:
                        self._log_means(title, log)
                    # Several processes save together, and their clocks differ.
                    is_late = world_size() == 1 and time.monotonic() > self._next_save
                    if is_late or self.step % self.save_every == 0 or self.step == self.steps:
                        self._check_parameters()  # a checkpoint with NaN would resume a lost training
                        self._save()
        finally:
            if self.prefetcher is not None:
                self.prefetcher.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()  # accelerate's `end_training` also ends the process group, and more may be trained

    def take_step(self, step_function: Step, describe_step: Callable[[], str] | None = None) -> dict[str, float]:
        """Take one optimizer step and return its losses and metrics by name; arguments and errors are those of `run`."""
        accelerator = self.accelerator
        trained = list(self._trained.values())
        totals = dict[str, Tensor]()
        self.optimizer.zero_grad()
        with accelerator.autocast():
            result = step_function(self.step)
        # Parts are computed one by one: memory holds the graph of a single one.
        parts = iter([result] if isinstance(result, dict) else result)
        while True:
            with accelerator.autocast():  # `next` computes a part; its backward pass runs outside of autocast
                part = next(parts, None)
            if part is None:
                break
            accelerator.backward(part["loss"])
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + to_widest(value.detach())
        values = torch.stack([*totals.values()])
        if world_size() > 1:
            values = accelerator.reduce(values.to(trained[0]), "mean")
            self._average_gradients(trained)
        norm_tensor = accelerator.clip_grad_norm_(trained, MAX_NORM)
        # The only read of a step: until then, a GPU need not be waited for.
        *losses, norm = torch.cat((values, norm_tensor.reshape(1).to(values))).tolist()
        sums = dict(zip(totals, losses, strict=True))
        where = f"step {self.step}" + (f", {describe_step()}" if describe_step is not None else "")
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(f"The training diverged: loss {sums['loss']} at {where}. Try a lower learning rate.")
        if not math.isfinite(norm):
            # With fp16 the scaler skips such a step and halves its scale; at a scale of 1 the scale is not to blame.
            self._overflows += 1
            if accelerator.scaler is None or accelerator.scaler.get_scale() <= 1 or self._overflows == self.steps:
                advice = "" if accelerator.scaler is None else ", or mixed_precision=bf16"
                raise FloatingPointError(
                    f"The training diverged: gradient norm {norm} at {where}. Try a lower learning rate{advice}."
                )
        self.optimizer.step()
        self._scheduler.step()
        self.step += 1
        return sums

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over the processes; all draw the same mask, so the same parameters have none."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        # one reduction for all: hundreds of small ones wait for each other
        mean = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _log_means(self, title: str, log: Log) -> None:
        means = {name: math.fsum(values) / len(values) for name, values in self._window.items()}
        self._window.clear()
        for name, value in means.items():
            self._logged.append((name, value, self.step))
            log(name, value, self.step)
        self.accelerator.log({f"{title}/{name}": value for name, value in means.items()}, step=self.step)

    def _check_parameters(self) -> None:
        for name, parameter in self._trained.items():
            if not torch.isfinite(parameter.detach()).all():
                raise FloatingPointError(
                    f"The training diverged: {name} is not finite after step {self.step - 1}. Try a lower learning rate."
                )

    def _gather(self, states: Sequence[Tensor]) -> Tensor | None:
        """Return the random states of each process, (processes, states, bytes); None without any."""
        if not states:
            return None
        stacked = torch.stack(list(states))[None]
        return stacked if world_size() == 1 else self.accelerator.gather(stacked.to(self.accelerator.device)).cpu()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        cpu, *others = random_states(self._devices)
        rng = self._gather([cpu])
        device_rng = self._gather(others)
        if not is_main_process():  # all take part in gathering, one writes
            return
        started = time.monotonic()
        buffer = io.BytesIO()
        state = {
            "step": self.step,
            "parameters": {name: p.detach() for name, p in self._trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
            "device_rng": device_rng,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "logged": self._logged,
            "window": self._window,  # so that a resumed training logs the means of an uninterrupted one
            "stateful": {name: json.dumps(each.state_dict()) for name, each in self.stateful.items()},
        }
        # serialised before the file is replaced: a kill leaves the old checkpoint or the new one
        torch.save(state, buffer)
        write_bytes(self.checkpoint, buffer.getvalue())
        ended = time.monotonic()
        self._next_save = ended + self.save_seconds * max(1.0, (ended - started) / SLOW_SAVE)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one; ValueError if it is damaged or of another run."""
        path = self.checkpoint
        if path is None or not path.is_file():
            return
        try:
            check_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._check(state)
            self._restore(state)
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path} is damaged, or of another run ({error}). Remove it to start again.") from error

    def _check(self, state: Mapping[str, Any]) -> None:
        processes = len(state["rng"])
        saved = {name: (p.shape, p.dtype) for name, p in state["parameters"].items()}
        own = {name: (p.shape, p.dtype) for name, p in self._trained.items()}
        differing = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
        if differing or not 0 <= state["step"] <= self.steps:
            what = ", ".join(differing[:5]) or "nothing"
            raise ValueError(f"it is at step {state['step']} of {self.steps}, and its parameters differ in {what}")
        if processes != world_size():
            raise ValueError(f"it was saved by {processes} processes, expected {world_size()}")
        check_finite(state["parameters"].items(), Path("the parameters"))
        owners = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, kept in state["optimizer"]["state"].items():  # before `load_state_dict` copies a tensor of huge strides
            for name, value in kept.items():
                if value.shape not in (owners[index].shape, torch.Size()):
                    raise ValueError(f"{name} of the optimizer has shape {tuple(value.shape)}")

    def _restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for kept in self.optimizer.state.values():
            check_finite(kept.items(), Path("the optimizer's state"))
        for name, each in self.stateful.items():
            each.load_state_dict(json.loads(state["stateful"][name]))
        self.step = int(state["step"])
        self._logged = list(state["logged"])
        self._window = dict(state["window"])
        self._scheduler.last_epoch = self.step  # all that a `LambdaLR` keeps; the optimizer's state has the current rates
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # Last of all: loading the state above must not draw from it.
        own = random_states(self._devices)
        (cpu,) = state["rng"][rank()]
        others = [] if state["device_rng"] is None else list(state["device_rng"][rank()])
        if [each.shape for each in others] != [each.shape for each in own[1:]]:
            warnings.warn(
                "the training goes on on other devices than it was stopped on: it keeps the step, the parameters and the "
                "optimizer, but its dropout differs from that of an uninterrupted training",
                stacklevel=2,
            )
            others = own[1:]
        restore_random_states(self._devices, [cpu, *others])
