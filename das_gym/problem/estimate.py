"""Estimate how long a command takes and how much memory, before it starts, from a timed forward of the model on its data.

Scoring masks on n examples takes, for each turn of masks that are scored together,

    n * (begin + sum over units (runs kept * seconds of the unit + runs skipped * skip) + distinct masks * leaf)

`begin` makes the state before the first unit, `leaf` is head, loss and metric. A unit runs once for each distinct beginning
of the masks of a turn (`count_runs`). Encoders run once for each example of the data: n * `encode`.

The peak memory is what the process has taken until the end of the timed forward (libraries, parameters, one batch), and what
each part of the command adds: encoder outputs and hidden states that are kept, the hidden states on the way down the mask
tree, and for training parameters, gradients, optimizer state and activations (`das_gym.adapt.estimate`).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.engine.encoder_cache import EncoderCache
from das_gym.engine.evaluator import Evaluator
from das_gym.models.base import VLP, State, bytes_of
from das_gym.problem.loading import Problem
from das_gym.processes import world_size

TIMED_SECONDS = 2.0
"""About how long the timed forward may take: it has fewer examples than a batch if a batch takes longer."""

ROUNDS = 3
"""Timed forwards, of which the fastest counts; one of a model for which that would take long."""


@dataclass(frozen=True)
class Part:
    """A part of a command.

    Attributes:
        name: What it does.
        seconds: How long it takes.
        kept: Bytes that it adds until the command ends.
        held: Bytes that it holds while it runs.
        is_certain: Whether it runs in any case.
    """

    name: str
    seconds: float
    kept: int = 0
    held: int = 0
    is_certain: bool = True


def format_estimate(parts: Sequence[Part], before: int) -> str:
    """Return the expected time and peak memory of a command's parts, after `before` bytes at the peak so far.

    Example:
        >>> print(format_estimate((Part("search", 50.0), Part("training", 20.0, held=2**30)), before=2**30))
        estimate: 1 min 10 s (search 50 s, training 20 s), peak memory 2.00 GiB
    """
    certain = [part for part in parts if part.is_certain]
    named = ", ".join(f"{part.name} {in_words(part.seconds)}" for part in certain)
    more = "".join(f", {part.name} up to {in_words(part.seconds)} more" for part in parts if not part.is_certain)
    kept = np.cumsum([part.kept for part in parts])
    peak = before + max(0, *(kept + [part.held for part in parts]))
    return f"estimate: {in_words(sum(part.seconds for part in certain))} ({named}){more}, peak memory {peak / 2**30:.2f} GiB"


def in_words(seconds: float) -> str:
    """Return a time such as `45 s`, `2 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def print_estimate(settings: Any, plan: Callable[[], Sequence[Part]]) -> bool:
    """Print the estimate of a command; return True if its settings ask for nothing else.

    `settings` has `estimate` and `resume`; `plan` measures the parts of the command, if any. A resumed run and several
    processes print none.
    """
    if settings.estimate is not False and settings.resume is None and world_size() == 1:
        parts = plan()
        if parts:
            print(format_estimate(parts, peak_bytes()))
        elif settings.estimate:
            print("estimate: no model has to run")
    return bool(settings.estimate)


def peak_bytes() -> int:
    """Return the peak memory so far of the GPUs that this process uses, or of the process if it uses none."""
    if peak := sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))):
        return peak
    try:  # `getrusage` has the peak of the process that started this one, if that was larger
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return how many bytes a forward pass keeps for the backward pass, without those of parameters.

    Works on the `meta` device too, where storages have a size and no address.
    """
    known = {p.untyped_storage()._cdata for p in parameters}
    saved: dict[int, tuple[Any, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage, storage.nbytes()  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = forward()  # noqa: F841 - the graph lives as long as its output
    return sum(size for _, size in saved.values())


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes on a device."""
    start = now(device)
    call()
    return now(device) - start


def now(device: torch.device) -> float:
    """Return the time in seconds, when all work that is queued on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Walk:
    """Measured costs of scoring one example; see the formula at the top of this module.

    Attributes:
        encode: Seconds of the encoders.
        begin: Seconds from their outputs to the state before the first unit.
        units: (n_units,) seconds of each unit that is kept.
        skip: Seconds of a unit that is skipped.
        leaf: Seconds of head, loss and metric.
        cached_bytes: Size of the encoder outputs.
        state_bytes: Size of the hidden states between two units.
    """

    encode: float
    begin: float
    units: np.ndarray
    skip: float
    leaf: float
    cached_bytes: int
    state_bytes: int

    @property
    def forward(self) -> float:
        """Seconds of the full model without its encoders."""
        return self.begin + float(self.units.sum()) + self.leaf

    def seconds(self, masks: np.ndarray, stages: Sequence[Sequence[int]], kept_share: float = 0.0) -> float:
        """Return the seconds of scoring (m, n_units) masks; a share of the full model's hidden states is known."""
        kept, full, skipped, leaves = count_runs(masks, stages)
        units = float((kept - kept_share * full) @ self.units)
        return (1 - kept_share) * self.begin + units + skipped * self.skip + leaves * self.leaf


def count_runs(masks: np.ndarray, stages: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Count the runs of units along the tree of (m, n_units) bool masks.

    Returns:
        (n_units,) how often each is kept, (n_units,) how many of these have nothing skipped before them, how often any unit
        is skipped, and the number of distinct masks.
    """
    (kept, full), skipped, before = np.zeros((2, masks.shape[1])), 0, list[int]()
    for stage in stages:
        for unit in stage:
            distinct = np.unique(masks[:, [*before, unit]], axis=0)
            kept[unit] = (~distinct[:, -1]).sum()
            full[unit] = (~distinct.any(axis=1)).sum()
            skipped += int(distinct[:, -1].sum())
        before += stage
    return kept, full, skipped, len(np.unique(masks, axis=0))


def time_walk(problem: Problem, examples: Sequence[Any]) -> Walk:
    """Time the full model on some of the examples, unit by unit, with an evaluator that shares only the model."""
    vlp, task, device, width = problem.vlp, problem.task, problem.vlp.device, len(problem.vlp.layers)
    most = min(problem.evaluator.batch_size, len(examples))
    counted_once = problem.evaluator.counter
    precision = problem.evaluator.precision
    evaluator = Evaluator(vlp, problem.head, task, most, precision=precision, counter=counted_once)

    def score(skipped: bool, some: Sequence[Any]) -> None:
        evaluator.forget()
        evaluator.losses(np.full((1, width), skipped), some)

    seconds, size = time_examples(lambda count: score(False, examples[:count]), most, device)
    batch, rounds = examples[:size], range(ROUNDS if size * seconds < TIMED_SECONDS else 1)
    marks: list[tuple[int, float]] = []
    walks = []
    for _ in rounds:
        evaluator.forget()
        marks[:] = [(-1, now(device))]
        evaluator.watch_full_model(batch, lambda _, unit, *__: marks.append((unit, now(device))))
        walks.append(np.diff([*(moment for _, moment in marks), now(device)]))
    order = [unit for unit, _ in marks[1:]]
    steps = np.min(walks, axis=0)
    times, to_first, leaf = np.zeros(width), steps[0], steps[-1]
    times[order[1:]] = steps[1:-1]
    # The first unit runs after `begin` without a mark between them: it counts as the others of its stream do.
    streams = [layer.stream for layer in vlp.layers]
    others = [times[unit] for unit in order[1:] if streams[unit] == streams[order[0]]]
    times[order[0]] = min(np.mean(others), to_first) if others else to_first / 2
    begin = to_first - times[order[0]]
    skipped = min(seconds_of(lambda: score(True, batch), device) for _ in rounds)
    new = examples[size : 2 * size] or batch
    encode, cached, state = time_encoders(vlp, task.processor, task.pairs(new))
    return Walk(
        encode=encode / len(new),
        begin=begin / size,
        units=times / size,
        skip=max(0.0, skipped - begin - leaf) / size / width,
        leaf=leaf / size,
        cached_bytes=cached // len(new),
        state_bytes=vlp.state_bytes(state) // len(new),
    )


def time_encoders(vlp: VLP, processor: Any, pairs: Sequence[Any]) -> tuple[float, int, State]:
    """Return the seconds that encoders take for pairs, the bytes of their outputs, and the state made from them.

    They have to have run before: the first batch of a size takes longer.
    """
    encoder = EncoderCache(vlp, processor)
    first = seconds_of(lambda: encoder(pairs), vlp.device)
    seconds = max(0.0, first - seconds_of(lambda: encoder(pairs), vlp.device))
    sizes: dict[Any, int] = {}

    def kept(stream: str, wanted: Any) -> Any:
        found = encoder.encode(stream, wanted)
        sizes.update({(stream, key): bytes_of(value) for key, value in found.items()})
        return found

    state = vlp.gather(processor, pairs, kept)
    return seconds, sum(sizes.values()), state


def time_examples(call: Callable[[int], object], most: int, device: torch.device) -> tuple[float, int]:
    """Return the seconds that a call takes for each of its examples, and of how many examples it was.

    The number grows until the call takes about `TIMED_SECONDS`, up to `most`, which run together later.
    """
    size = min(2, most)  # in a large model, two examples take little longer than one
    while True:
        seconds = seconds_of(partial(call, size), device)
        if seconds < TIMED_SECONDS:  # the first call takes longer, which matters for small models alone
            seconds = seconds_of(partial(call, size), device)
        if size == most or seconds > TIMED_SECONDS / 4:
            return seconds / size, size
        size = min(most, max(4 * size, int(size * TIMED_SECONDS / 4 / seconds)))


def scoring(problem: Problem, walk: Walk, name: str, examples: int, turns: Sequence[np.ndarray], repeats: float) -> Part:
    """Return the part of a command that scores masks on the same number of examples again and again.

    `turns` are masks that are scored together; all of these turns take place `repeats` times.
    """
    evaluator, stages = problem.evaluator, problem.vlp.stages
    trunk = min(evaluator.trunk_bytes, examples * walk.state_bytes * (len(stages) + 1))
    share = trunk / max(1, examples * walk.state_bytes * (len(stages) + 1))
    seconds = sum(walk.seconds(masks, stages, share) for masks in turns) * repeats
    if share:  # the first turn knows nothing yet
        seconds += share * walk.forward
    kept = trunk + min(evaluator.encoder.max_bytes, examples * walk.cached_bytes)
    held = min(evaluator.batch_size, examples) * problem.task.passes * problem.walk_bytes
    return Part(name, examples * (walk.encode + seconds), kept, held)
