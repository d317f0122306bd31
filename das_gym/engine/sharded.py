"""Share masks among the workers of a Ray cluster: this module cuts masks into shards and puts the scores together again."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from das_gym.engine.evaluator import Evaluator, OnScores
from das_gym.engine.scores import Scores, Spending
from das_gym.processes import raise_interrupts

RETRIES = 3
"""How often a shard is tried again after its worker died; workers themselves are restarted without limit."""

Make = Callable[[], Evaluator]
"""Makes a worker's own evaluator, in the worker; it is pickled."""


Answer = tuple[Scores, Spending, list[tuple[type[Warning], str]]]
"""A worker's scores for its shard, their cost, and warnings."""


class Worker:
    """Scores shards in a separate process: a Ray actor."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def score(
        self,
        box: Sequence[Any],
        masks: np.ndarray,
        examples: Sequence[Any],
        each: bool,
        divergences: bool,
        block: tuple[int, int] | None,
    ) -> Answer:
        """Return the scores of `evaluate_each`, or of `evaluate` unless `each`, their cost, and warnings.

        `box` holds a Ray reference to a `Make`, which is fetched for the first shard. Ray replaces a reference that is an
        argument itself by its content, each time.
        """
        if self._evaluator is None:
            import ray

            make: Make = ray.get(box[0])
            with warnings.catch_warnings(action="ignore"):  # the main process has loaded the same, and warned
                self._evaluator = make()
        evaluator = self._evaluator
        evaluator.reset_spent()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if each:
                scores = evaluator.evaluate_each(masks, examples, block=block)
            else:
                scores = evaluator.evaluate(masks, examples, divergences=divergences)
        return scores, evaluator.spent, [(warning.category, str(warning.message)) for warning in caught]


class ShardedEvaluator(Evaluator):
    """An `Evaluator` whose masks are scored by workers of a Ray cluster; scores are the same.

    Every worker has a separate copy of the model and one CPU (one thread), or one GPU if the model is on a GPU; there are as
    many as the cluster has room for. They start with the first masks, and again when adapters or the head change. Each call
    splits its masks into one shard per worker, neighbours in the tree of masks. The main process caches scores, and runs the
    model itself when a layer statistic is measured. `spent` counts what ran in all workers: each runs the encoders and the
    path to its part of the tree.

    The cluster is the one that this process is connected to, else that of `RAY_ADDRESS`, else a local one, which ends with
    the process. Other arguments are those of `Evaluator`.

    Args:
        recipe: Returns what makes a worker's evaluator, with the model's current weights.

    Raises:
        ValueError: the cluster has no room for these workers.
    """

    def __init__(self, *args: Any, recipe: Callable[[], Make], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.resources = {"CPU": 1, "GPU": 1} if self.vlp.device.type == "cuda" else {"CPU": 1}
        connect_to_ray()
        self.num_workers = count_workers(self.resources)
        self._box: list[Any] = []
        self._workers: list[Any] = []

    def forget(self) -> None:
        """Clear cached scores and stop the workers. The next call starts workers with the current weights."""
        super().forget()
        self.close()

    def close(self) -> None:
        """Stop the workers and release their CPUs and GPUs."""
        import ray

        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker)
        self._box = []
        self._workers = []

    def _start(self) -> list[Any]:
        import ray

        if not ray.is_initialized():
            self._workers = []
            connect_to_ray()
        if not self._workers:
            devices = {"num_cpus": 1, "num_gpus": self.resources.get("GPU", 0)}
            options = {**devices, "max_restarts": -1, "max_task_retries": RETRIES}
            self._box = [ray.put(self.recipe())]  # kept: a worker may be restarted
            self._workers = [ray.remote(**options)(Worker).remote() for _ in range(self.num_workers)]
        return self._workers

    def _score(
        self,
        masks: np.ndarray,
        examples: Sequence[Any],
        progress: Callable[[int], Any] | None,
        divergences: bool,
        full_logits: list[Tensor] | None,
    ) -> tuple[np.ndarray, list[Tensor] | None]:
        """Return means as `Evaluator._score`; workers keep the full model's logits, and progress is reported once."""
        scores = self._share(masks, examples, False, divergences)
        if progress is not None:
            progress(len(examples))
        return scores, []

    def _score_each(
        self, masks: np.ndarray, examples: Sequence[Any], block: tuple[int, int] | None, on_scores: OnScores | None
    ) -> np.ndarray:
        """Return what `Evaluator._score_each` returns; `on_scores` is called once, when all workers have answered."""
        each = self._share(masks, examples, True, block is None, block)
        rows = np.arange(len(masks))
        self._count_each(rows, 0 if block is None else block[0], each[0])
        if on_scores is not None:
            on_scores(rows, each)
        return each if block is None else each[:2]

    def _share(
        self, masks: np.ndarray, examples: Sequence[Any], each: bool, divergences: bool, block: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return (3, m) losses, metrics and divergences (0 unless requested), or (3, m, n) with `each`: of each example."""
        import ray

        workers = self._start()
        shared_examples = ray.put(examples)
        shards = [rows for rows in np.array_split(tree_order(masks, self.vlp.stages), len(workers)) if len(rows)]
        pending = [
            worker.score.remote(self._box, masks[rows], shared_examples, each, divergences, block)
            for worker, rows in zip(workers, shards, strict=False)
        ]
        try:
            answers: list[Answer] = ray.get(pending)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what `Evaluator` itself would have raised
        start, stop = block or (0, len(examples))
        found = np.zeros((3, len(masks), stop - start) if each else (3, len(masks)))
        for rows, (scores, spent, warned) in zip(shards, answers, strict=True):
            parts = (scores.losses, scores.metrics, scores.divergences)
            for column, values in enumerate(parts):
                found[column, rows] = 0.0 if values is None else values
            for counter in ("layer_runs", "adapter_runs", "macs", "texts", "images"):  # others are counted in this process
                setattr(self._spent, counter, getattr(self._spent, counter) + getattr(spent, counter))
            for category, text in warned:
                warnings.warn(text, category, stacklevel=5)
        return found


def tree_order(masks: np.ndarray, stages: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the (m,) row numbers that sort the masks so that masks with the same first stages are neighbours."""
    units = [index for stage in stages for index in stage]
    return np.lexsort(masks[:, units[::-1]].T)


def connect_to_ray() -> None:
    """Connect to a Ray cluster, or start a local one."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster sends no usage statistics
        ray.init()
        raise_interrupts()  # `ray.init` replaces the handler of SIGTERM


def count_workers(resources: Mapping[str, int]) -> int:
    """Return how many workers that need `resources` each, by Ray's names, the cluster has room for; ValueError for none."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(name, 0)) // count for name, count in resources.items()) for node in nodes)
    if not room:
        needed = " and ".join(f"{count} {name}" for name, count in resources.items())
        raise ValueError(f"`workers=ray` finds no node with {needed} in this Ray cluster. Join another with RAY_ADDRESS")
    return room
