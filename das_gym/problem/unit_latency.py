"""What each unit takes on this machine, in milliseconds: measured once, kept, and summed up for any mask.

Every unit is timed where it runs, inside whole forwards of the frozen model under random masks. A mask and its opposite take
turns, and with them the model without adapters, so that each unit is seen kept and skipped equally often, behind whatever
runs before it, and whatever else the machine does weighs on all alike. Of each part the median counts; what a mask takes
is the sum of its parts. `python -m benchmarks.latency` compares that with whole subnets by the clock.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from das_gym.config import build
from das_gym.data.cache import cache_folder
from das_gym.files import read_json, write_json
from das_gym.models.base import VLP, no_mark
from das_gym.models.macs import without_adapters
from das_gym.problem.loading import Problem
from das_gym.problem.mask_cost import MaskCost
from das_gym.progress import progress
from das_gym.tasks.base import Task

ROUNDS = (6, 60)
"""Timed rounds, at least and at most; in each a unit runs once kept and once skipped."""

SECONDS = 20.0
"""After so long no more rounds than the least are begun."""

WARM = 2
"""Rounds before those that are counted."""


@dataclass(frozen=True)
class UnitLatencies:
    """What the parts of a model take, in milliseconds a batch.

    Attributes:
        full: The whole model without adapters: what savings refer to.
        base: Of the model with adapters whatever runs under every mask: encoders, embeddings, head.
        kept: Each unit that is kept, with its parallel adapters.
        skipped: What stands in the place of each.
        measured: What the figures hold for: machine, device, threads, model, type, batch.

    Raises:
        ValueError: not as many kept as skipped ones, or a number that is no time.
    """

    full: float
    base: float
    kept: tuple[float, ...]
    skipped: tuple[float, ...]
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        times = np.array([self.full, self.base, *self.kept, *self.skipped], dtype=float)
        if len(self.kept) != len(self.skipped) or not (np.isfinite(times).all() and (times >= 0).all() and self.full > 0):
            raise ValueError("latencies are finite milliseconds from 0 on, as many of kept units as of skipped ones")

    @property
    def cost(self) -> MaskCost:
        """What any mask takes, in milliseconds."""
        kept, skipped = np.array(self.kept), np.array(self.skipped)
        return MaskCost(self.full, self.base + float(kept.sum()), kept - skipped, "latency_saved")


Timed = Callable[..., Any]
"""`timed(mask, mark)` runs the model once under a (n_layers,) mask, with marks around units (`das_gym.models.base.Mark`)."""


def latency_of(problem: Problem, batch: int = 1, processor_time: bool = False) -> UnitLatencies:
    """What the units of a problem's model take, from the cache folder where they were measured before.

    One process of this machine measures a model at a time, and the others wait for its figures.

    Args:
        problem: Model, task and data.
        batch: Examples that run at a time, at least 1: the first that score masks.
        processor_time: Of a model on the CPU, one thread's processor time, which others on the processor hardly stretch.

    Raises:
        ValueError: a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"latency_batch={batch} is not allowed; use 1 or more examples at a time")
    examples = [problem.splits.reward[i] for i in problem.task.order(problem.splits.reward)[:batch].tolist()]
    if not processor_time or problem.vlp.device.type != "cpu":
        return _latency_of(problem, examples, time.perf_counter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _latency_of(problem, examples, time.thread_time, {"clock": "processor time"})
    finally:
        torch.set_num_threads(threads)


def _latency_of(
    problem: Problem, examples: Sequence[Any], clock: Callable[[], float], more: Mapping[str, str] = MappingProxyType({})
) -> UnitLatencies:
    """As `latency_of`, of some examples, by a clock; `more` is what the figures hold for besides."""
    timed = served(problem.vlp, problem.head, problem.task, examples)
    measured = {**_measured(problem.vlp, timed, len(examples)), **more}
    path = figures_file(measured)
    with _alone(path):
        kept = _kept(path, len(problem.layer_names))
        if kept is not None:
            return kept
        bare = without_adapters_sharing(problem.vlp)
        timed_bare = None if bare is None else served(bare, problem.head, problem.task, examples)
        timer = UnitTimer(timed, timed_bare, len(problem.layer_names), problem.vlp.device, clock)
        found = dataclasses.replace(measure_units(timer), measured=measured)
        cost = {"latency_saved": found.cost.as_dict()}
        record = {"costs": cost, "layers": problem.layer_names, "latencies": dataclasses.asdict(found)}
        with contextlib.suppress(OSError):  # a cache folder that cannot be written to costs measuring again, no more
            write_json(path, record)
    return found


def _alone(path: Path) -> contextlib.AbstractContextManager[object]:
    """The lock of a file of figures, taken, where the cache folder can be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock").acquire()
    except OSError:
        return contextlib.nullcontext()


def _kept(path: Path, n_layers: int) -> UnitLatencies | None:
    """The figures of a model with so many units in a file; None where it is not there, or damaged."""
    try:
        found = build(UnitLatencies, read_json(path)["latencies"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if len(found.kept) == n_layers else None


def served(vlp: VLP, head: nn.Module, task: Task, examples: Sequence[Any]) -> Timed:
    """One forward of some examples from pixels and tokens to logits, as whoever serves the model runs it."""
    forward = vlp.served(task.processor, task.pairs(examples))
    return lambda mask=None, mark=no_mark: head(task.group_features(forward(mask, mark)))


def figures_file(measured: Mapping[str, Any]) -> Path:
    """Where the figures are kept that hold for that."""
    digest = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{digest}.json"


def without_adapters_sharing(vlp: VLP) -> VLP | None:
    """The model without parallel adapters, on the same weights; None where it has none."""
    own = {id(tensor): tensor for tensor in (*vlp.parameters(), *vlp.buffers())}
    twin = without_adapters(copy.deepcopy(vlp, own))
    return twin if sum(1 for _ in twin.parameters()) < sum(1 for _ in vlp.parameters()) else None


def measure_units(
    timer: UnitTimer, rounds: tuple[int, int] = ROUNDS, seconds: float = SECONDS, warm: int = WARM
) -> UnitLatencies:
    """Time the parts of a model.

    Args:
        timer: Times them, a round after the other.
        rounds: Timed rounds, at least and at most.
        seconds: After so long no more than the least are begun.
        warm: Rounds before those that are counted.
    """
    for _ in range(warm):
        timer.round()
    timer.forget()
    started = time.perf_counter()
    with progress(rounds[1], "measuring latency", unit="round") as bar:
        for number in range(rounds[1]):
            if number >= rounds[0] and time.perf_counter() - started > seconds:
                break
            timer.round()
            bar.update()
    return timer.latencies()


class UnitTimer:
    """Times the units of a model, round by round.

    Args:
        timed: Runs it.
        timed_bare: Runs it without adapters; None where it has none.
        n_layers: Number of units.
        device: Where it runs.
        clock: Tells seconds; a GPU has its own.
    """

    def __init__(
        self,
        timed: Timed,
        timed_bare: Timed | None,
        n_layers: int,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.timed, self.timed_bare, self.n_layers = timed, timed_bare, n_layers
        self._watch = _Watch(n_layers, device, clock)
        self._rng = np.random.default_rng(0)
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was timed so far only warmed up."""
        self._masks: list[np.ndarray] = []
        self._totals: list[float] = []
        self._kept: list[np.ndarray] = []
        self._skipped: list[np.ndarray] = []
        self._base: list[float] = []
        self._bare: list[np.ndarray] = []

    @torch.inference_mode()
    def round(self) -> None:
        """Time each unit once kept and once skipped, and once without adapters where there are any."""
        mask = self._rng.random(self.n_layers) < 0.5
        (one, rest), (other, rest_too) = self._watch(self.timed, mask), self._watch(self.timed, ~mask)
        self._masks += [mask, ~mask]
        self._totals += [float(one.sum()) + rest, float(other.sum()) + rest_too]
        self._kept.append(np.where(mask, other, one))
        self._skipped.append(np.where(mask, one, other))
        self._base += [rest, rest_too]
        if self.timed_bare is not None:
            self._bare.append(np.append(*self._watch(self.timed_bare, np.zeros(self.n_layers, dtype=bool))))

    def latencies(self) -> UnitLatencies:
        """The median of each part over the rounds so far.

        A machine's hiccups fall on few parts of a run, so that medians of parts know nothing of them, and medians of whole
        runs do: all parts are stretched by what whole runs took beyond the sum of theirs.
        """
        kept, skipped, base = np.median(self._kept, axis=0), np.median(self._skipped, axis=0), float(np.median(self._base))
        masks = np.array(self._masks)
        whole = np.where(masks, skipped, kept).sum(axis=1) + base
        stretch = float(np.median(np.array(self._totals) / whole))
        kept, skipped, base = stretch * kept, stretch * skipped, stretch * base
        full = float(np.median(np.sum(self._bare, axis=1))) if self._bare else base + float(kept.sum())
        return UnitLatencies(full, base, tuple(kept.tolist()), tuple(skipped.tolist()))


class _Watch:
    """Times the units of one forward, by the events of a GPU where it runs on one.

    Args:
        n_layers: Number of units.
        device: Where it runs.
        clock: Tells seconds.
    """

    def __init__(self, n_layers: int, device: torch.device, clock: Callable[[], float]) -> None:
        self.n_layers, self.cuda, self.clock = n_layers, device.type == "cuda", clock

    def __call__(self, timed: Timed, mask: np.ndarray) -> tuple[np.ndarray, float]:
        """(n_layers,) milliseconds of each unit, and those of everything else."""
        marks: dict[int, list[Any]] = {}
        if self.cuda:
            torch.cuda.synchronize()
        begin = self._now()
        timed(mask, lambda index, _: marks.setdefault(index, []).append(self._now()))
        end = self._now()
        if self.cuda:
            torch.cuda.synchronize()
        units = np.zeros(self.n_layers)
        for index, moments in marks.items():
            units[index] = sum(self._between(*pair) for pair in zip(moments[::2], moments[1::2], strict=True))
        return units, max(self._between(begin, end) - float(units.sum()), 0.0)

    def _now(self) -> Any:
        if not self.cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, one: Any, other: Any) -> float:
        return float(one.elapsed_time(other)) if self.cuda else 1000 * (other - one)


def _measured(vlp: VLP, timed: Timed, batch: int) -> dict[str, Any]:
    """What figures depend on, in plain values."""
    shapes: list[list[int]] = []
    with torch.inference_mode():
        timed(None, lambda index, hidden: shapes.append(list(hidden.shape)))
    names = [(name, list(p.shape), str(p.dtype)) for name, p in vlp.named_parameters()]
    cuda = vlp.device.type == "cuda"
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(vlp.device) if cuda else vlp.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": f"{type(vlp).__name__} {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}",
        "dtype": str(next(vlp.parameters()).dtype).removeprefix("torch."),
        "units": [layer.name for layer in vlp.layers],
        "examples": batch,
        "shapes": [shape for number, shape in enumerate(shapes) if shape not in shapes[:number]],
    }


def processor_name() -> str:
    """The processor's name as Linux has it, or else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
