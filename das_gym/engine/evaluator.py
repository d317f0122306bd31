"""Score many masks of one frozen model on the same examples, exactly and for the price of a few.

Encoder outputs are computed once and cached (`caches`), masks share what they have in common (`tree`), scores are
cached until an adapter or the head changes, and everything that runs is counted (`scores`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.engine.caches import MAX_LOGITS_BYTES, EncoderCache, Score, ScoreMemory, TrunkMemory
from das_gym.engine.scores import Scores, Spending, warn_of_broken
from das_gym.engine.tree import MaskTree, resolve_precision, with_bfloat16_layers
from das_gym.models.base import VLP, State, tensor_bytes
from das_gym.models.inputs import to_device, to_widest
from das_gym.models.macs import MacCounter, head_macs
from das_gym.names import brief
from das_gym.tasks.base import Task

if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's OpenMP threads, and would wait for them
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

LEAVES_PER_READ = 64
"""Masks whose scores are read from a GPU at a time: each read waits until all that was launched before has run."""

Watch = Callable[[Sequence[Any], int, State, Tensor], None]
"""`watch(batch, index, state, output)` sees each layer of the full model on each batch of examples."""

OnScores = Callable[[np.ndarray, np.ndarray], None]
"""`on_scores(rows, scores)` gets rows of the masks, and their (3, rows, n) losses, metrics and divergences on a batch."""


class Evaluator:
    """Scores masks of one frozen model and head.

    Adapters, poolers and the head may be trained between calls: scores are then forgotten automatically, and encoder outputs
    stay. Frozen parameters must not change.

    Args:
        vlp: The model, with adapters.
        head: Maps the task's `group_features` to logits, in eval mode.
        task: Makes batches, and computes loss and metric.
        batch_size: Examples that go through the tree at a time.
        cache_bytes: Largest size of the encoder outputs that are kept in memory, in bytes; None as in `EncoderCache`.
        cache_folder: Folder that also keeps encoder outputs, see `EncoderCache`.
        trunk_bytes: Largest size of the full model's hidden vectors on the last examples that are kept, in bytes.
        precision: Of the layers: `float32` (the model's own), `bfloat16`, or `auto` (bfloat16 if the hardware has it).
            Encoders, sums, LayerNorms, poolers, head and losses keep the model's own.
        counter: Counts the MACs of this model; None makes one.

    Raises:
        ValueError: The precision is unknown, or `bfloat16` on hardware without it.

    Example:
        >>> import numpy as np
        >>> from das_gym import ProblemConfig, load_problem
        >>> problem = load_problem(ProblemConfig(model="METER", task="vqa"))
        >>> masks = np.eye(12, dtype=bool)  # skip one layer each
        >>> problem.evaluator.evaluate(masks, problem.splits.reward[:8]).losses.shape
        (12,)
    """

    def __init__(
        self,
        vlp: VLP,
        head: nn.Module,
        task: Task,
        batch_size: int = 128,
        cache_bytes: int | None = None,
        cache_folder: str | Path | None = None,
        trunk_bytes: int = 0,
        precision: str = "float32",
        counter: MacCounter | None = None,
    ) -> None:
        self.vlp = vlp
        self.head = head
        self.task = task
        self.batch_size = batch_size
        self.precision = resolve_precision(precision, vlp.device)
        self.counter = counter or MacCounter(vlp)
        self._spent = Spending()
        self.encoder_cache = EncoderCache(vlp, task.processor, cache_bytes, cache_folder, self.counter, self._spent)
        self._memory = ScoreMemory([*vlp.tunable_state().values(), *head.parameters(), *head.buffers()])
        self.trunk_bytes = trunk_bytes
        self._trunk = TrunkMemory(trunk_bytes)
        self._head_macs: dict[torch.Size, int] = {}
        self._runner: VLP | None = None
        self._started: float | None = None

    @property
    def spent(self) -> Spending:
        """A copy of the counters since the last `reset_spent`, also while masks are scored."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return replace(self._spent, seconds=self._spent.seconds + running)

    def reset_spent(self) -> None:
        """Set every counter to zero."""
        self._spent = self.encoder_cache.spent = Spending()

    def forget(self) -> None:
        """Clear cached scores, not encoder outputs. Needed only after writes to `parameter.data`, which are not detected."""
        self._memory.forget()
        self._trunk.forget()
        self._runner = None

    def with_empty_caches(self) -> Evaluator:
        """Return an evaluator of the same model without scores, encoder outputs or workers."""
        return Evaluator(
            self.vlp,
            self.head,
            self.task,
            self.batch_size,
            self.encoder_cache.max_bytes,
            trunk_bytes=self.trunk_bytes,
            precision=self.precision,
            counter=self.counter,
        )

    def kept_bytes(self) -> list[tuple[int, int]]:
        """Return the bytes of encoder outputs and of hidden states of the full model, each with the most that is kept."""
        return [(self.encoder_cache.kept_bytes, self.encoder_cache.max_bytes), (self._trunk.bytes, self.trunk_bytes)]

    def close(self) -> None:
        """Stop the workers, if there are any (`ShardedEvaluator`). Scoring starts them again."""

    def losses(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        """Return (m,) float64 mean losses in nats; see `evaluate`."""
        return self.evaluate(masks, examples).losses

    def evaluate(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        progress: Callable[[int], Any] | None = None,
        divergences: bool = False,
    ) -> Scores:
        """Score masks on examples.

        Args:
            masks: (m, n_layers) bool or 0/1, 1 = skipped; m may be 0.
            examples: At least one.
            progress: Called with the number of examples done, after each batch.
            divergences: Compare with the full model too. It runs in the same tree, and once for the same examples.

        Returns:
            Mean loss and metric of each mask, in the order given.

        Raises:
            ValueError: Masks have another shape or other values, or there are no examples.
        """
        masks = self._check_masks(masks, examples)
        self._forget_changed()
        signature = _signature(examples)
        keys = [(signature, mask.tobytes()) for mask in masks]
        found = self._memory.find(keys, divergences)
        todo = {key: mask for key, mask in zip(keys, masks, strict=True) if key not in found}
        if todo:
            full_logits = self._memory.logits((signature, self.batch_size)) if divergences else None
            if divergences and full_logits is None:
                full_model = np.zeros(len(self.vlp.layers), dtype=bool)
                todo.setdefault((signature, full_model.tobytes()), full_model)
            with self._timed_run(signature):
                means, logits = self._score(np.stack(list(todo.values())), examples, progress, divergences, full_logits)
            fresh = {key: _score_of(column, divergences) for key, column in zip(todo, means.T.tolist(), strict=True)}
            # Nothing is kept before all has been scored, so that an error or an interrupt leaves the caches as they were.
            if divergences and logits is not None:
                self._memory.keep_logits((signature, self.batch_size), logits)
            self._count_scored(len(todo), len(examples), np.array([score.loss for score in fresh.values()]))
            found |= fresh
            self._memory.keep(found)
        scores = np.array([found[key] for key in keys], dtype=np.float64).reshape(-1, 3)
        losses, metrics, divergence = scores.T.copy()
        return Scores(losses, metrics, divergence if divergences else None)

    def remember(self, masks: np.ndarray, examples: Sequence[Any], scores: Scores) -> None:
        """Cache the scores of (m, n_layers) masks on these examples as if `evaluate` had computed them."""
        self._forget_changed()
        signature = _signature(examples)
        keys = [(signature, mask.tobytes()) for mask in self._check_masks(masks, examples)]
        found = zip(scores.losses.tolist(), scores.metrics.tolist(), strict=True)
        self._memory.keep({key: Score(loss, metric, None) for key, (loss, metric) in zip(keys, found, strict=True)})

    def evaluate_each(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        on_scores: OnScores | None = None,
        block: tuple[int, int] | None = None,
    ) -> Scores:
        """Score masks on each example by itself; nothing is cached.

        Args:
            masks: (m, n_layers) bool or 0/1, 1 = skipped.
            examples: At least one.
            on_scores: Gets the scores of masks on a batch as soon as they are known.
            block: (start, stop): only these examples are scored, without divergences. What is kept of the full model stays
                from block to block, if `examples` are the same in each call.

        Returns:
            (m, n) float64 losses in nats, metrics and divergences, NaN or inf of a broken example.
        """
        start, stop = block or (0, len(examples))
        masks = self._check_masks(masks, examples[start:stop])
        self._forget_changed()
        signature = _signature(examples)
        with self._timed_run(signature if block is None else hash((signature, "in blocks"))):
            return Scores(*self._score_each(masks, examples, block, on_scores))

    def watch_full_model(self, examples: Sequence[Any], watch: Watch) -> None:
        """Score the full model and pass each layer's input and output to a callback. The score is cached as for any mask.

        In the last stage the callback sees only the output of the tokens that are read.
        """
        mask = np.zeros((1, len(self.vlp.layers)), dtype=bool)
        self._forget_changed()
        key = (_signature(examples), mask[0].tobytes())
        sums = np.zeros(3)
        with self._timed_run(key[0]), np.errstate(invalid="ignore"):
            for _, _, scores, _ in self._leaves(mask, examples, watch=watch):
                sums[:2] += [float(values.sum()) for values in scores]
        score = _score_of((sums / len(examples)).tolist(), False)
        if not self._memory.find([key], False):
            self._memory.keep({key: score})
            self._count_scored(1, len(examples), np.array([score.loss]))

    def _check_masks(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        array = np.asarray(masks)
        if array.shape == (0,):
            array = array.reshape(0, len(self.vlp.layers))
        if array.ndim != 2 or array.shape[1] != len(self.vlp.layers):
            raise ValueError(f"invalid masks: got shape {array.shape}, expected (number of masks, {len(self.vlp.layers)})")
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            wrong = array[~np.isin(array, (0, 1))][0]
            raise ValueError(f"invalid masks: got the value {wrong}, expected 0 (keep) or 1 (skip)")
        if not len(examples):
            raise ValueError("got no examples to score masks on, expected at least one")
        if not hasattr(examples[0], "key"):
            got = brief(examples[0])
            raise TypeError(f"`examples` are not those of a task: got {got}, expected some of `problem.splits.reward`")
        return array.astype(bool)

    def _forget_changed(self) -> None:
        if self._memory.refresh():
            self.forget()

    @contextmanager
    def _timed_run(self, signature: int) -> Iterator[None]:
        self._started = time.perf_counter()
        self._trunk.start(hash((signature, self.batch_size)))
        try:
            yield
        finally:
            self._spent.seconds += time.perf_counter() - self._started
            self._started = None

    def _count_scored(self, masks: int, examples: int, losses: np.ndarray) -> None:
        self._spent.masks += masks
        self._spent.examples += masks * examples
        self._spent.broken += int((~np.isfinite(losses)).sum())

    def _score_each(
        self, masks: np.ndarray, examples: Sequence[Any], block: tuple[int, int] | None, on_scores: OnScores | None
    ) -> np.ndarray:
        """Return (3, m, n) losses, metrics and divergences, or (2, m, n) with a block."""
        start, stop = block or (0, len(examples))
        added = 1 if block is None else 0  # the full model, for divergences
        each = np.zeros((2 + added, len(masks), stop - start))
        scored = np.concatenate((np.zeros((added, masks.shape[1]), dtype=bool), masks))
        for leaf, where, scores, _ in self._leaves(scored, examples[start:stop], divergences=block is None, first=start):
            rows = leaf[leaf >= added] - added
            each[:, rows, where] = np.asarray(scores)[:, None]  # equal masks share a leaf, and so a column of scores
            self._count_each(rows, start + where.start, each[0, rows, where])
            if on_scores is not None and len(rows):
                on_scores(rows, each[:, rows, where])
        return each

    def _count_each(self, rows: np.ndarray, first: int, losses: np.ndarray) -> None:
        self._spent.masks += len(rows) if first == 0 else 0
        self._spent.examples += losses.size
        self._spent.broken += int((~np.isfinite(losses)).any(axis=1).sum())

    def _score(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        progress: Callable[[int], Any] | None,
        divergences: bool,
        full_logits: list[Tensor] | None,
    ) -> tuple[np.ndarray, list[Tensor] | None]:
        """Return (3, m) means of losses, metrics and divergences (0 unless requested), and the full model's logits by batch.

        Logits of more than `MAX_LOGITS_BYTES` are None: the full model then runs again in the next call.
        If divergences are requested without `full_logits`, the full model must be among the masks.
        """
        sums = np.zeros((3, len(masks)))
        kept: list[Tensor] | None = []
        with np.errstate(invalid="ignore"):  # inf may meet -inf
            for rows, _, scores, full in self._leaves(masks, examples, progress, divergences, full_logits):
                for column, values in enumerate(scores):
                    sums[column, rows] += float(values.sum())  # in float64, batch by batch: other orders round differently
                if full is not None and kept is not None:
                    kept.append(full)
                    if tensor_bytes(kept) > MAX_LOGITS_BYTES:
                        kept = None
        return sums / len(examples), kept

    @torch.inference_mode()
    def _leaves(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        progress: Callable[[int], Any] | None = None,
        divergences: bool = False,
        full_logits: list[Tensor] | None = None,
        watch: Watch | None = None,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, slice, np.ndarray, Tensor | None]]:
        """Walk the tree of masks over the examples, batch by batch; `first` is the place of the first one in the trunk.

        Yields:
            Rows of equal masks; which of the examples; their losses, metrics and, if requested, divergences, (2 or 3, n)
            float64; and with the first rows of a batch the full model's logits, if divergences are requested.
        """
        if self._runner is None:
            self._runner = self.vlp if self.precision == "float32" else with_bfloat16_layers(self.vlp)
        tree = MaskTree(self.vlp, masks, self._spent, self.precision, self._runner, self.counter)
        broken: dict[int, list[str]] = {}
        for number, start in enumerate(range(0, len(examples), self.batch_size)):
            chunk = examples[start : start + self.batch_size]
            batch = (first + start, len(chunk))
            trunk = partial(self._trunk.get_or_compute, batch)
            state: State = trunk(-1, partial(self._begin, chunk))  # before targets: prompts are read here with their images
            targets = {name: to_device(t, self.vlp.device) for name, t in self.task.targets(chunk).items()}
            known = partial(self._trunk.known, batch) if watch is None else None
            leaves = tree.leaves(state, trunk, known, None if watch is None else partial(watch, chunk))
            scored = self._score_leaves(leaves, targets, divergences, None if full_logits is None else full_logits[number])
            while together := list(islice(scored, 1 if self.vlp.device.type == "cpu" else LEAVES_PER_READ)):
                arrays = torch.stack([scores for _, scores, _ in together]).cpu().double().numpy()
                for (rows, _, full), array in zip(together, arrays, strict=True):
                    for values in array[:2]:
                        if not np.isfinite(values).all():
                            keys = [chunk[place].key for place in np.flatnonzero(~np.isfinite(values)).tolist()]
                            broken.setdefault(int(rows[0]), []).extend(keys)
                    yield rows, slice(start, start + len(chunk)), array, full
            if progress is not None:
                progress(len(chunk))
        warn_of_broken(masks, broken)

    def _score_leaves(
        self,
        leaves: Iterator[tuple[np.ndarray, Tensor]],
        targets: dict[str, Tensor],
        divergences: bool,
        full: Tensor | None,
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor | None]]:
        """Yield what `_leaves` does for a batch, scores on the device. Without `full`, the first leaf is the full model."""
        for number, (rows, features) in enumerate(leaves):
            logits = self._logits(features)
            full = logits if full is None else full
            scores = [self.task.losses(logits, targets), self.task.metrics(logits, targets)]
            if divergences:
                scores.append(self.task.divergences(to_widest(logits), to_widest(full), targets))
            yield rows, torch.stack([to_widest(values) for values in scores]), full if divergences and number == 0 else None

    def _begin(self, examples: Sequence[Any]) -> State:
        encoded = self.encoder_cache(self.task.pairs(examples))
        self._spent.macs += self.counter.embed(encoded)[1]
        return self.vlp.embed(encoded)

    def _logits(self, features: Tensor) -> Tensor:
        gathered = self.task.group_features(features)
        if gathered.shape not in self._head_macs:
            self._head_macs[gathered.shape] = head_macs(self.head, gathered)
        self._spent.macs += self._head_macs[gathered.shape]
        return self.head(gathered)


def _signature(examples: Sequence[Any]) -> int:
    # Within one process, so that Python's own salted hash serves; keys of examples are unique within a task.
    return hash(tuple(e.key for e in examples))


def _score_of(means: Sequence[float], divergences: bool) -> Score:
    """Return the score for means of loss, metric and divergence: a broken mask gets the worst possible one."""
    loss, metric, divergence = means
    if not (np.isfinite(loss) and np.isfinite(metric)):
        return Score(np.inf, 0.0, np.inf if divergences else None)
    if not divergences:
        return Score(loss, metric, None)
    return Score(loss, metric, max(divergence, 0.0) if np.isfinite(divergence) else np.inf)  # rounding may go below 0
