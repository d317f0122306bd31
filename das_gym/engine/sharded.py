"""Masks shared out among the workers of a Ray cluster.

Ray places the workers, keeps what they read, starts a worker anew that died, and asks it again for what it had not
answered. Here masks are cut into shards and put together again, and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from das_gym.engine.evaluator import Evaluator
from das_gym.engine.scores import Scores
from das_gym.engine.spending import Spending
from das_gym.interrupts import raise_interrupts

RETRIES = 3
"""So often is a shard asked for again whose worker died over it; workers themselves are started anew without end."""

Make = Callable[[], Evaluator]
"""Makes a worker's own evaluator, in the worker; it is pickled."""


class Answer(NamedTuple):
    """What a worker says of its shard: scores, what they cost it, and the warnings on the way."""

    scores: Scores
    spent: Spending
    warned: list[tuple[type[Warning], str]]


class Worker:
    """Scores shards, in a process of its own: a Ray actor."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def score(self, box: Sequence[Any], masks: np.ndarray, examples: Sequence[Any], each: bool, divergences: bool) -> Answer:
        """The scores of `Evaluator.evaluate_each`, or of `evaluate`.

        Args:
            box: Holds the reference to what makes its evaluator, which is fetched where it has none yet.
            masks: As there.
            examples: As there.
            each: Which of the two.
            divergences: As there.
        """
        if self._evaluator is None:
            self._evaluator = _made(box[0])
        evaluator = self._evaluator
        evaluator.reset_spent()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if each:
                scores = evaluator.evaluate_each(masks, examples)
            else:
                scores = evaluator.evaluate(masks, examples, divergences=divergences)
        return Answer(scores, evaluator.spent, [(warning.category, str(warning.message)) for warning in caught])


def _made(reference: Any) -> Evaluator:
    """What a reference's `Make` makes."""
    import ray

    make: Make = ray.get(reference)
    with warnings.catch_warnings(action="ignore"):  # the process that asks has loaded the same, and told
        return make()


class ShardedEvaluator(Evaluator):
    """An `Evaluator` whose masks are scored by workers of a Ray cluster; scores are the same.

    Every worker has a model of its own, made when the first masks are scored, and one CPU, that is one thread. Each call
    cuts its masks into as many shards as there are workers, of neighbours in the tree of masks, so that a worker walks a
    part of the tree. A worker that dies costs what it had of its shard. The process that asks keeps what `Evaluator`
    keeps: it remembers scores, and runs the model itself where a layer statistic is measured. `spent` counts what ran
    in all workers, which is more than alone: each runs the encoders and the way to its part of the tree; `seconds`
    are those that went by. When adapters or the head change here, workers are made anew.

    The cluster is the one that this process is connected to, else that of `RAY_ADDRESS`, else a local one, which ends with
    the process.

    Args:
        args, kwargs: As for `Evaluator`.
        recipe: Gives what makes a worker's evaluator, of the model as it is now.
        num_workers: How many, None = as many as the cluster has room for.
        gpus_per_worker: GPUs of each, 0 or more; several may share one.

    Raises:
        ValueError: Ray is not installed, or the cluster has no room for so many workers.
    """

    def __init__(
        self, *args: Any, recipe: Callable[[], Make], num_workers: int | None, gpus_per_worker: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.gpus_per_worker = recipe, gpus_per_worker
        _connect()
        self.num_workers = _count_workers(num_workers, gpus_per_worker)
        self._box: list[Any] = []
        self._workers: list[Any] = []

    def forget(self) -> None:
        """As `Evaluator.forget`; workers are made anew."""
        super().forget()
        self.close()

    def close(self) -> None:
        """End the workers, so that others can have their CPUs and GPUs."""
        import ray

        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker)
        self._box, self._workers = [], []

    def _start(self) -> list[Any]:
        """The workers, which are made where there are none."""
        import ray

        if not ray.is_initialized():
            self._workers = []
            _connect()
        if not self._workers:
            options = {"num_cpus": 1, "num_gpus": self.gpus_per_worker, "max_restarts": -1, "max_task_retries": RETRIES}
            self._box = [ray.put(self.recipe())]  # kept: a worker may be started anew
            self._workers = [ray.remote(**options)(Worker).remote() for _ in range(self.num_workers)]
        return self._workers

    def _score(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        progress: Callable[[int], Any] | None,
        divergences: bool,
        full_logits: list[Tensor] | None,
    ) -> tuple[np.ndarray, list[Tensor]]:
        """As `Evaluator._score`; workers keep the full model's logits, and progress is told once."""
        scores = self._share(masks, examples, False, divergences)
        if progress is not None:
            progress(len(examples))
        return scores, []

    def _score_each(self, masks: np.ndarray, examples: Sequence[Any]) -> np.ndarray:
        return self._share(masks, examples, True, True)

    def _share(self, masks: np.ndarray, examples: Sequence[Any], each: bool, divergences: bool) -> np.ndarray:
        """(3, m) or, of each example, (3, m, n_examples) losses, metrics and divergences (0 unless asked for)."""
        import ray

        workers, examples_there = self._start(), ray.put(examples)
        shards = [rows for rows in np.array_split(self._tree_order(masks), len(workers)) if len(rows)]
        asked = [
            worker.score.remote(self._box, masks[rows], examples_there, each, divergences)
            for worker, rows in zip(workers, shards, strict=False)
        ]
        try:
            answers: list[Answer] = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what `Evaluator` itself would have raised
        found = np.zeros((3, len(masks), len(examples)) if each else (3, len(masks)))
        for rows, (scores, spent, warned) in zip(shards, answers, strict=True):
            parts = (scores.losses, scores.metrics, scores.divergences)
            for column, values in enumerate(parts):
                found[column, rows] = 0.0 if values is None else values
            self._count(spent)
            for category, text in warned:
                warnings.warn(text, category, stacklevel=5)
        return found

    def _tree_order(self, masks: np.ndarray) -> np.ndarray:
        """(m,) rows of the masks such that those that agree on their first stages lie side by side."""
        units = [index for stage in self.vlp.stages for index in stage]
        return np.lexsort(masks[:, units[::-1]].T)

    def _count(self, spent: Spending) -> None:
        """Add what ran in a worker; masks and examples, which every evaluator counts, are counted here."""
        self._spent.layer_runs += spent.layer_runs
        self._spent.adapter_runs += spent.adapter_runs
        self._spent.macs += spent.macs
        self.encoder.texts += spent.texts
        self.encoder.images += spent.images


def _connect() -> None:
    """Be connected to a Ray cluster.

    Raises:
        ValueError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("workers='ray' needs Ray: pip install 'das_gym[ray]', or leave workers out")
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is begun here sends nothing to anybody
        ray.init()
        raise_interrupts()  # `ray.init` replaces the handler of SIGTERM


def _count_workers(num_workers: int | None, gpus: float) -> int:
    """How many workers there are to be on the cluster that we are connected to.

    Raises:
        ValueError: it has no room for them.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    if gpus > most:
        raise ValueError(
            f"gpus_per_worker={gpus:g}, but no node of this Ray cluster has more than {most:g}: use 0..{most:g}, or join a "
            "cluster with RAY_ADDRESS"
        )
    room = sum(_room(node, gpus) for node in nodes)
    if room < (num_workers or 1):
        each = "1 CPU" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ValueError(
            f"num_workers={num_workers}, but this Ray cluster has room for {room} workers of {each}: use fewer, or "
            "join a larger cluster with RAY_ADDRESS"
        )
    return room if num_workers is None else num_workers


def _room(node: Mapping[str, float], gpus: float) -> int:
    """For how many workers a node has CPUs and GPUs."""
    cpus, there = int(node.get("CPU", 0)), int(node.get("GPU", 0))
    if not gpus:
        return cpus
    return min(cpus, there * int(1 / gpus) if gpus < 1 else int(there // gpus))
