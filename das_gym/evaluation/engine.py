"""Many masks of one frozen model on the same examples, for the price of a few.

Masks are walked as a prefix tree of stages, depth first: masks that agree on their first stages
share that work. Within a stage each layer runs at most twice (kept, skipped) per parent state,
self-attention and the keys and values of cross-attention once per hidden state they read, and in
the last stage only the pooled token is a query. Nothing is approximated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.evaluation.encoded import EncoderCache
from das_gym.evaluation.spending import Spending
from das_gym.tasks.base import Task
from das_gym.vlp.base import VLP, State


@dataclass(frozen=True)
class Scores:
    """Mean loss and metric of each mask.

    Attributes:
        losses: (m,) float64, nats; inf where the loss was not a number.
        metrics: (m,) float64, 0..1.
    """

    losses: np.ndarray
    metrics: np.ndarray

    @property
    def broken(self) -> np.ndarray:
        """(m,) bool: masks whose loss is not finite."""
        return ~np.isfinite(self.losses)


class Evaluator:
    """Scores masks of one frozen model and head.

    Args:
        vlp: The model, with adapters.
        head: From pooled features to logits.
        task: Batches, loss and metric.
        batch_size: Examples that go through the tree at a time.
        cache_bytes: How much encoder output to keep, in bytes.
        remember: How many scores of masks to remember.
    """

    def __init__(
        self, vlp: VLP, head: nn.Module, task: Task, batch_size: int = 128, cache_bytes: int = 2**31, remember: int = 100_000
    ) -> None:
        self.vlp = vlp
        self.head = head
        self.task = task
        self.batch_size = batch_size
        self.remember = remember
        self.encoder = EncoderCache(vlp, task, cache_bytes)
        self._spent = Spending()
        self._scored: dict[tuple, tuple[float, float]] = {}

    @property
    def spent(self) -> Spending:
        """What was spent since the last `reset_spent`: a copy."""
        return replace(self._spent, encoded=self.encoder.encoded)

    def reset_spent(self) -> None:
        """Set every counter to zero."""
        self._spent = Spending()
        self.encoder.encoded = 0

    def forget(self) -> None:
        """Forget scores, as is due when an adapter or the head has changed; encoder outputs stay."""
        self._scored.clear()

    def losses(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        """(m,) float64 mean losses in nats; see `evaluate`."""
        return self.evaluate(masks, examples).losses

    def evaluate(self, masks: np.ndarray, examples: Sequence[Any], progress: Callable[[int], Any] | None = None) -> Scores:
        """Score masks on examples.

        Args:
            masks: (m, n_layers) bool or 0/1, 1 = skipped; m may be 0.
            examples: At least one.
            progress: Called with the number of examples done, after each batch.

        Returns:
            Mean loss and metric of each mask, in the order given.

        Raises:
            ValueError: masks of another shape, or no examples.
        """
        masks = self._check(masks, examples)
        signature = hash(tuple(e.key for e in examples))
        keys = [(signature, mask.tobytes()) for mask in masks]
        todo = {key: row for row, key in enumerate(keys) if key not in self._scored}
        if todo:
            started = time.perf_counter()
            fresh = self._score(masks[list(todo.values())], examples, progress)
            if len(self._scored) + len(todo) > self.remember:
                self._scored = {key: self._scored[key] for key in keys if key in self._scored}
            self._scored.update(zip(todo, zip(fresh.losses.tolist(), fresh.metrics.tolist(), strict=True), strict=True))
            self._spent.masks += len(todo)
            self._spent.examples += len(todo) * len(examples)
            self._spent.seconds += time.perf_counter() - started
        found = np.array([self._scored[key] for key in keys], dtype=np.float64).reshape(len(keys), 2)
        return Scores(losses=found[:, 0].copy(), metrics=found[:, 1].copy())

    def _check(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        array = np.asarray(masks)
        width = len(self.vlp.layers)
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"masks of shape {array.shape}; give (number of masks, {width}), one row a mask")
        if not len(examples):
            raise ValueError("no examples to score masks on; give at least one")
        return array.astype(bool)

    @torch.inference_mode()
    def _score(self, masks: np.ndarray, examples: Sequence[Any], progress: Callable[[int], Any] | None) -> Scores:
        sums = np.zeros((2, len(masks)))
        for start in range(0, len(examples), self.batch_size):
            chunk = examples[start : start + self.batch_size]
            targets = {name: t.to(self.vlp.device) for name, t in self.task.targets(chunk).items()}
            state = self.vlp.begin(self.encoder(chunk))
            for rows, features in self._walk(state, 0, masks, np.arange(len(masks)), {}):
                logits = self.head(features)
                sums[0, rows] += float(self.task.losses(logits, targets).double().sum())
                sums[1, rows] += float(self.task.metrics(logits, targets).double().sum())
            if progress is not None:
                progress(len(chunk))
        losses, metrics = sums / len(examples)
        losses = np.where(np.isfinite(losses), losses, np.inf)
        return Scores(losses=losses, metrics=np.where(np.isfinite(losses), metrics, 0.0))

    def _walk(
        self, state: State, stage: int, masks: np.ndarray, rows: np.ndarray, memory: dict[tuple, Any]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields (rows of `masks`, their pooled features) for every leaf below `state`.

        `memory` is shared by states with the same parent, which have hidden tensors in common; its keys hold
        ids of tensors that the caller keeps alive.
        """
        if stage == len(self.vlp.stages):
            yield rows, self.vlp.pool(state)
            return
        layers = self.vlp.stages[stage]
        last = stage == len(self.vlp.stages) - 1
        outputs: dict[tuple[int, bool], Tensor] = {}
        below: dict[tuple, Any] = {}

        def memo(key: tuple, compute: Callable[[], Any]) -> Any:
            if key not in memory:
                memory[key] = compute()
            return memory[key]

        bits = masks[rows][:, layers]
        for choice in np.unique(bits, axis=0):
            hidden = dict(state.hidden)
            for index, skipped in zip(layers, choice.tolist(), strict=True):
                if (index, skipped) not in outputs:
                    outputs[index, skipped] = self.vlp.run_layer(index, state, skipped, memo, pooled_only=last)
                    self._spent.layer_runs += not skipped
                    self._spent.adapter_runs += skipped
                hidden[self.vlp.layers[index].stream] = outputs[index, skipped]
            same = rows[(bits == choice).all(axis=1)]
            yield from self._walk(state.with_hidden(hidden), stage + 1, masks, same, below)
