"""Measured latency: of whole models, and of each unit, which adds up to that of any mask.

Units are timed within whole forwards under random masks. A mask, its complement and the model without adapters take turns,
so that each unit is timed kept and skipped equally often, and other load on the machine affects all alike. The median of
each part counts. `python -m benchmarks.latency` compares sums of parts with the measured latency of whole subnets.

On a CPU, whole forwards are measured by the processor time of all threads, in which other processes do not count: on a busy
machine most whole forwards are interrupted, but most runs of a unit are not. Where forwards under random masks do not match
the sums of their parts, the measurement is doubtful: a warning says so, and the next process measures again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from das_gym.commands.progress import progress
from das_gym.commands.settings import build
from das_gym.files import cache_folder, read_json, write_json
from das_gym.intervals import bootstrap_interval
from das_gym.models.base import VLP, Mark, no_mark
from das_gym.models.macs import share_copy, without_adapters
from das_gym.problem.budget import MaskCost
from das_gym.problem.loading import shuffled
from das_gym.problem.problem import Problem
from das_gym.tasks.base import Task

CPU = torch.device("cpu")

BLOCKS = 15
"""Timed blocks of each call: they take turns, so that other load on the machine affects all calls alike."""

RUNS = 4
"""Runs in a block; torch makes two more before them that are not counted."""

ROUNDS = (6, 60)
"""Fewest and most timed rounds; in each, a unit runs once kept and once skipped."""

SECONDS = 20.0
"""After this time no further rounds start, beyond the fewest."""

WARM_UP = 2

MAX_RELATIVE_ERROR = 0.1
"""Largest `UnitLatencies.error` without a warning that the latencies are doubtful."""

MEASURED: dict[Path, UnitLatencies] = {}
"""What this process measured, by file: a file's time cannot say who measured it, since clocks may be set back."""

EARLIER: dict[Path, UnitLatencies] = {}
"""What earlier processes measured and this one has read, by file."""


class Spread(NamedTuple):
    """Median and quartiles of measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: np.ndarray) -> Spread:
        """Return median and quartiles of (n,) values."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


@torch.inference_mode()
def measure_latency(
    calls: Mapping[str, Callable[[], object]], device: torch.device = CPU, blocks: int = BLOCKS, runs: int = RUNS
) -> dict[str, np.ndarray]:
    """Return the wall-clock time of each call, by `torch.utils.benchmark`, on as many threads as torch uses.

    Args:
        calls: What is timed, by name.
        device: Where the calls run; torch waits for this GPU.
        blocks: Timed blocks of each call; the calls take turns.
        runs: Runs in a block.

    Returns:
        Name to (blocks,) float64, milliseconds a run; entries of one index were measured one after the other.
    """
    threads = torch.get_num_threads()
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        times = [[1000 * timer.timeit(runs).mean for timer in timers.values()] for _ in range(blocks)]
    return dict(zip(timers, np.array(times).T, strict=True))


class Speedup(NamedTuple):
    """How many times as fast one call is as another: the ratio of their median times, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_measurable(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high


def speedup(times: np.ndarray, base: np.ndarray) -> Speedup:
    """Return how much faster a call is than the one that it replaces, from (blocks,) times of both in milliseconds.

    `times` and `base` are what `measure_latency` returns: entries of one index were measured one after the other.
    """
    low, high = bootstrap_interval(lambda rows: np.median(base[rows], axis=1) / np.median(times[rows], axis=1), len(times))
    return Speedup(float(np.median(base) / np.median(times)), low, high)


@dataclass(frozen=True)
class UnitLatencies:
    """Latencies of the parts of a model, in milliseconds per batch.

    Attributes:
        full: The model without adapters: the baseline of savings.
        base: What runs under every mask of the model with adapters: encoders, embeddings, head.
        kept: Each unit that is kept, with its parallel adapters.
        skipped: What replaces each unit.
        error: Median difference between forwards under random masks and the sums of their parts, as a share of the model's.
        measured: Conditions of the measurement: machine, device, threads, model, number format, batch.
    """

    full: float
    base: float
    kept: tuple[float, ...]
    skipped: tuple[float, ...]
    error: float = 0.0
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cost(self) -> MaskCost:
        """The latency of any mask, in milliseconds."""
        kept, skipped = np.array(self.kept), np.array(self.skipped)
        return MaskCost(self.full, self.base + float(kept.sum()), kept - skipped, "latency_saved")


Timed = Callable[..., Any]
"""`timed(mask, mark)` runs the model once under a (n_layers,) mask, with marks around units (`das_gym.models.base.Mark`)."""


def unit_latencies(problem: Problem, batch: int = 1, clock: Callable[[], float] = time.process_time) -> UnitLatencies:
    """Return the latencies of a problem's units, from the cache folder if they were measured before.

    Its first `batch` examples that score masks are a forward pass; `clock` returns seconds on a CPU. The setting
    `latency_again` ignores what an earlier process measured. A line on standard error shows when such figures were measured,
    and a UserWarning says if the error of new ones is above `MAX_RELATIVE_ERROR`.
    """
    if batch < 1:
        raise ValueError(f"`latency_batch` is out of range: got {batch}, expected at least 1")
    examples = shuffled(problem.task, problem.splits.reward, batch)
    n_layers = len(problem.layer_names)
    timed = make_timed_forward(problem.vlp, problem.head, problem.task, examples)
    measured = {**_conditions(problem.vlp, timed, len(examples)), "clock": clock.__name__}
    digest = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "latency" / f"{digest}.json"
    known = MEASURED.get(path) or (None if problem.scoring.latency_again else read_latencies(path, n_layers))
    if known is not None:
        return known
    bare = without_adapters_sharing(problem.vlp)
    timed_bare = None if bare is None else make_timed_forward(bare, problem.head, problem.task, examples)
    timer = UnitTimer(timed, timed_bare, n_layers, problem.vlp.device, clock)
    found = dataclasses.replace(measure_units(timer), measured=measured)
    if found.error > MAX_RELATIVE_ERROR:
        warnings.warn(
            "the measured latency is doubtful: the sum of its parts differs from that of whole forwards by "
            f"{found.error:.0%}. The machine may be busy. This process uses the figures, the next one measures again",
            stacklevel=2,
        )
    record = {
        "costs": {"latency_saved": found.cost.as_dict()},
        "layers": problem.layer_names,
        "latencies": dataclasses.asdict(found),
    }
    MEASURED[path] = found
    with contextlib.suppress(OSError):  # without a writable cache folder, each process measures
        write_json(path, record)
    return found


def read_latencies(path: Path, n_layers: int) -> UnitLatencies | None:
    """Return what an earlier process measured; None for a missing or damaged file, and for doubtful figures.

    Its date is printed, once.
    """
    if path in EARLIER:
        return EARLIER[path]
    try:
        found = build(UnitLatencies, read_json(path)["latencies"])
        written = path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if len(found.kept) != n_layers or found.error > MAX_RELATIVE_ERROR:
        return None
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(written))
    print(f"latency: measured on {when}; latency_again=True measures again", file=sys.stderr)
    EARLIER[path] = found
    return found


def make_timed_forward(vlp: VLP, head: nn.Module, task: Task, examples: Sequence[Any]) -> Timed:
    """Return a function that runs some examples from images and tokens to logits, as a server would."""
    forward = vlp.make_timed_forward(task.processor, task.pairs(examples))
    return lambda mask=None, mark=no_mark: head(task.group_features(forward(mask, mark)))


def without_adapters_sharing(vlp: VLP) -> VLP | None:
    """Return the model without parallel adapters, on the same weights; None if it has none."""
    twin = without_adapters(share_copy(vlp))
    return twin if sum(1 for _ in twin.parameters()) < sum(1 for _ in vlp.parameters()) else None


def measure_units(
    timer: UnitTimer, rounds: tuple[int, int] = ROUNDS, seconds: float = SECONDS, warm_up: int = WARM_UP
) -> UnitLatencies:
    """Return the latencies of a model's parts, measured in the fewest to most `rounds` after `warm_up` others."""
    for _ in range(warm_up):
        timer.round()
    timer.reset()
    started = time.perf_counter()
    with progress(rounds[1], "measuring latency", unit="round") as bar:
        for number in range(rounds[1]):
            if number >= rounds[0] and time.perf_counter() - started > seconds:
                break
            timer.round()
            bar.update()
    return timer.latencies()


class UnitTimer:
    """Times the units of a model, and whole forwards, round by round.

    Args:
        timed: Runs the model with its adapters.
        timed_bare: Runs it without adapters; None if it has none.
        n_layers: Number of units.
        device: On a GPU, events measure all times.
        clock: Returns the seconds of whole forwards on a CPU.
        mark_clock: Returns the seconds around each unit on a CPU; reading processor time there would cost 0.14 ms a unit.
    """

    def __init__(
        self,
        timed: Timed,
        timed_bare: Timed | None,
        n_layers: int,
        device: torch.device,
        clock: Callable[[], float] = time.process_time,
        mark_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.timed = timed
        self.timed_bare = timed_bare
        self.n_layers = n_layers
        self.device = device
        self.cuda = device.type == "cuda"
        self.clock = clock
        self.mark_clock = mark_clock
        self._rng = np.random.default_rng(0)
        self.reset()

    def reset(self) -> None:
        """Discard all rounds so far."""
        self._runs: list[tuple[np.ndarray, np.ndarray, float]] = []  # mask, milliseconds of each unit, and of the forward
        self._wholes: list[list[float]] = []  # milliseconds with all units, with none, and without adapters

    @torch.inference_mode()
    def round(self) -> None:
        """Time each unit once kept and once skipped, and whole forwards: all units, none, and all without adapters."""
        everything = np.zeros(self.n_layers, dtype=bool)
        mask = self._rng.random(self.n_layers) < 0.5
        self._runs += [(each, *self._run_units(each)) for each in (mask, ~mask)]
        wholes = [self._run(self.timed, everything), self._run(self.timed, ~everything)]
        if self.timed_bare is not None:
            wholes.append(self._run(self.timed_bare, everything))
        self._wholes.append(wholes)

    def latencies(self) -> UnitLatencies:
        """Return the latency of each part by the rounds so far.

        Medians of units leave interruptions out. They are scaled to the difference of whole forwards with all units and with
        none. Other load slows the processor down for a while, so forwards are compared with those of the same round.
        """
        masks, units, totals = (np.array(part) for part in zip(*self._runs, strict=True))
        wholes = np.array(self._wholes)
        full = float(np.median(wholes[:, 0]))
        none, *bare = (full * np.median(wholes[:, 1:] / wholes[:, :1], axis=0)).tolist()
        # Each unit was kept in one run of every round, and skipped in the other.
        kept = np.nanmedian(np.where(masks, np.nan, units), axis=0)
        skipped = np.nanmedian(np.where(masks, units, np.nan), axis=0)
        gain = float((kept - skipped).sum())
        stretch = (full - none) / gain if gain > 0 and full > none else 1.0
        kept = stretch * kept
        skipped = stretch * skipped
        base = none - float(skipped.sum())
        sums = base + np.where(masks, skipped, kept).sum(axis=1)
        error = abs(float(np.median(totals / wholes[:, 0].repeat(2) - sums / full)))
        baseline = bare[0] if bare else base + float(kept.sum())
        return UnitLatencies(baseline, base, tuple(kept.tolist()), tuple(skipped.tolist()), error)

    def _run_units(self, mask: np.ndarray) -> tuple[np.ndarray, float]:
        marks: dict[int, list[Any]] = {}
        total = self._run(self.timed, mask, lambda index, _: marks.setdefault(index, []).append(self._now(self.mark_clock)))
        units = np.zeros(self.n_layers)
        for index, moments in marks.items():
            units[index] = sum(self._between(*pair) for pair in zip(moments[::2], moments[1::2], strict=True))
        return units, total

    def _run(self, timed: Timed, mask: np.ndarray, mark: Mark = no_mark) -> float:
        if self.cuda:
            torch.cuda.synchronize(self.device)
        begin = self._now(self.clock)
        timed(mask, mark)
        end = self._now(self.clock)
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return self._between(begin, end)

    def _now(self, clock: Callable[[], float]) -> Any:
        if not self.cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, one: Any, other: Any) -> float:
        return float(one.elapsed_time(other)) if self.cuda else 1000 * (other - one)


def _conditions(vlp: VLP, timed: Timed, batch: int) -> dict[str, Any]:
    shapes: list[list[int]] = []
    with torch.inference_mode():
        timed(None, lambda index, hidden: shapes.append(list(hidden.shape)))
    names = [(name, list(p.shape), str(p.dtype)) for name, p in vlp.named_parameters()]
    cuda = vlp.device.type == "cuda"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []  # Linux has the full name
    processors = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": processors[0] if processors else platform.processor() or platform.machine(),
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
