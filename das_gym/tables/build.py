"""Making exhaustive tables: scoring every mask of a problem."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.commands.runs import library_versions
from das_gym.commands.settings import build
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.scores import Scores, Spending
from das_gym.files import parse_json, read_arrays, write_bytes
from das_gym.problem.budget import COST_KINDS, measure_cost
from das_gym.problem.latency import UnitLatencies, unit_latencies
from das_gym.problem.loading import shuffled
from das_gym.problem.mask_space import masks_up_to
from das_gym.problem.problem import Problem
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import STATISTICS, check_statistics, compute_statistics
from das_gym.tables.examples import ExampleScores
from das_gym.tables.table import SCORES, SPLITS, SubnetTable, TableMeta
from das_gym.tasks.base import Task, content_hash

CHECKPOINT_FORMAT = "das_gym table checkpoint 2"

SAVE_SECONDS = 30.0
"""Least time between two checkpoints within a batch: all masks of a large model take hours on a few examples."""

COUNTED_COSTS = tuple(name for name, kind in COST_KINDS.items() if kind.counted and name != "macs_saved")
"""Costs besides MACs that every table holds: they are the same on every machine."""

EXAMPLES_MEASURED = 16
"""Approximate number of examples whose images are opened for a data hash."""

COUNTS = ("lengths", "options")
"""Targets that count what others list: tables that were made without them stay valid."""

EXAMPLES_HASHED = 512


def table_examples(problem: Problem, split: str, count: int | None = None) -> tuple[Any, ...]:
    """Return the first `count` examples of a split in the order of environments, None = all; ValueError below 1."""
    if count is not None and count < 1:
        raise ValueError(f"`{split}_examples` is out of range: got {count}, expected at least 1, or None for all")
    return shuffled(problem.task, getattr(problem.splits, split), count)


def problem_hashes(problem: Problem, reward: Sequence[Any], test: Sequence[Any], content: bool = False) -> dict[str, str]:
    """Return hashes of what a table of the problem depends on, 16 hex digits each, the same on every machine.

    Returns:
        `model`: frozen parameters. `supernet`: adapters, head and labels, and how linear skip adapters are fitted (their
            values differ a little from machine to machine). `reward_data`, `test_data`: keys, tokens and targets of the
            examples in order, and the sizes of a few images. With `content`, also `reward_content`, `test_content`: all
            pixels and texts.
    """
    tensors = {f"vlp.{name}": tensor for name, tensor in problem.vlp.tunable_state().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in problem.head.named_parameters()}
    task = problem.task
    scoring = problem.scoring
    words = [*task.labels]
    if scoring.skip == "linear":
        words += [f"skip=linear, rank {scoring.skip_rank}, {scoring.calibration_examples} examples"]
    hashes = {
        "model": problem.backbone.base,
        "supernet": hash_tensors(words, tensors),
        "reward_data": data_hash(task, reward),
        "test_data": data_hash(task, test),
    }
    if content:
        hashes |= {"reward_content": content_hash(task, reward), "test_content": content_hash(task, test)}
    return hashes


def data_hash(task: Task, examples: Sequence[Any]) -> str:
    """Return 16 hex digits of the keys, tokens and targets of examples in order, and of the sizes of a few images."""
    # All pixels would take minutes: sizes of a few images tell data sets apart, tokens and targets the examples.
    measured = task.pairs(examples[:: max(len(examples) // EXAMPLES_MEASURED, 1)])
    words = [str(image.open().size) for pair in measured for image in pair.images]
    for start in range(0, len(examples), EXAMPLES_HASHED):
        block = examples[start : start + EXAMPLES_HASHED]
        tokens = task.processor.tokens(task.pairs(block))
        targets = {name: target for name, target in task.targets(block).items() if name not in COUNTS}
        words.append(hash_tensors([example.key for example in block], {**tokens, **targets}))
    return hash_tensors(words, {})


def hash_tensors(words: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of some words and of named tensors, whatever their device."""
    digest = hashlib.sha256(json.dumps(words).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def latency_costs(latencies: UnitLatencies) -> dict[str, Any]:
    """Return latencies as `TableMeta.costs` holds them."""
    return {"latency_saved": {**latencies.cost.as_dict(), "measured": latencies.measured}}


def build_table(
    problem: Problem,
    env_id: str,
    reward_examples: int | None = None,
    test_examples: int | None = None,
    checkpoint: Path | None = None,
    on_scores: Callable[[float], Any] | None = None,
    max_skipped: int | None = None,
    each: bool = False,
    latency_batch: int | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> tuple[SubnetTable, Spending]:
    """Score every mask, or every mask of at most `max_skipped` layers, on the reward and the test split.

    Args:
        problem: Model, task and data.
        env_id: Id of the problem's environment.
        reward_examples: Number of examples of the reward split to use, None = all.
        test_examples: Number of examples of the test split to use, None = all.
        checkpoint: File to write after every batch, and within one, and to resume from if it exists; the table is the same,
            bit for bit, as one that was not interrupted.
        on_scores: Called with the number of examples done, first with those of the checkpoint. A batch of which a share of
            the masks is scored counts as that share.
        max_skipped: Masks that skip more layers are left out; None = no mask is left out.
        each: Keep the scores of each example (format 2).
        latency_batch: Number of examples per forward pass when measuring the latency of units; None measures none.
        save_seconds: Least time between two checkpoints within a batch. Workers of Ray report whole batches.
    """
    width = len(problem.layer_names)
    masks = masks_up_to(width, max_skipped)
    counts = {"reward": reward_examples, "test": test_examples}
    examples = {split: table_examples(problem, split, count) for split, count in counts.items()}
    hashes = problem_hashes(problem, examples["reward"], examples["test"], content=each)
    groups = sorted({problem.task.group(example) for part in examples.values() for example in part}) if each else []
    identity = {"env_id": env_id, "batch_size": problem.evaluator.batch_size, **hashes}
    identity |= {"max_skipped": max_skipped, "groups": groups}
    progress = _Progress(problem.task, examples, identity, masks, each, checkpoint)
    progress.score(problem.evaluator, save_seconds, on_scores or (lambda done: None))
    costs = {setting: measure_cost(problem, setting).as_dict() for setting in COUNTED_COSTS}
    if latency_batch is not None:
        costs |= latency_costs(unit_latencies(problem, latency_batch))
    config = problem.backbone.origin.config
    meta = TableMeta(
        env_id=env_id,
        layer_names=problem.layer_names,
        metric_name=problem.task.metric_name,
        macs_full=problem.costs.macs_full,
        reward_examples=len(examples["reward"]),
        test_examples=len(examples["test"]),
        statistics=tuple(STATISTICS),
        hashes=hashes,
        versions=library_versions(),
        max_skipped=max_skipped,
        costs=costs,
        groups=tuple(groups),
        settings={} if config is None else config.score_settings,
    )
    scores = {split: _mean_scores(progress.sums[split], len(examples[split])) for split in SPLITS}
    macs = problem.costs.macs_cost.amounts(masks)
    statistics = np.zeros((width, len(STATISTICS)), np.float32)
    by_group = np.zeros((len(groups), *statistics.shape), np.float32) if groups else None
    table = SubnetTable(meta, scores, macs, statistics, progress.each or None, by_group)
    return with_statistics(table, problem), progress.spent


def _mean_scores(sums: np.ndarray, count: int) -> Scores:
    # Sums are float64, in the order of batches: a resumed build rounds as one that was not stopped.
    means = sums / count
    # A mask with a non-finite loss in some batch has loss inf.
    return Scores(*np.where(np.isfinite(means[0]), means, np.array([[np.inf], [0.0], [np.inf]])).astype(np.float32))


def with_statistics(table: SubnetTable, problem: Problem) -> SubnetTable:
    """Return the table with its statistics measured on its reward examples, for each group too."""
    examples = table_examples(problem, "reward", table.meta.reward_examples)
    statistics = _measure_statistics(problem, examples, table)
    if table.group_statistics is None:
        return dataclasses.replace(table, statistics=statistics)
    by_group = np.zeros((len(table.meta.groups), *statistics.shape), np.float32)
    sizes = np.minimum(*table.group_sizes().values())
    for number, group in enumerate(table.meta.groups):
        if sizes[number]:
            members = [e for e in examples if problem.task.group(e) == group]
            by_group[number] = _measure_statistics(problem, members, table.group_table(group))
    return dataclasses.replace(table, statistics=statistics, group_statistics=by_group)


def _measure_statistics(problem: Problem, examples: Sequence[Any], table: SubnetTable) -> np.ndarray:
    activity = measure_activity(problem.evaluator, examples)
    inputs = StatisticInputs(problem.evaluator, problem.costs, examples, activity, table.removal_losses)
    return compute_statistics(check_statistics(table.meta.statistics), inputs)


class _Progress:
    """The scores so far, which a checkpoint keeps.

    Attributes:
        identity: What the table depends on; another identity is another table.
        sums: By split, (3, masks) float64 sums over `done` examples of losses, metrics and divergences.
        each: By split, the scores of each example; empty where means are enough.
        batch: (3, masks, n) float64 scores on the batch at work, of the masks in `scored`, (masks,) bool.
        spent: The computation so far.
    """

    def __init__(
        self,
        task: Task,
        examples: Mapping[str, Sequence[Any]],
        identity: dict[str, Any],
        masks: np.ndarray,
        each: bool,
        checkpoint: Path | None,
    ) -> None:
        groups = identity["groups"]
        self.examples = examples
        self.identity = identity
        self.masks = masks
        self.checkpoint = checkpoint
        self.done = dict.fromkeys(SPLITS, 0)
        self.spent = Spending()
        self.sums = {split: np.zeros((len(SCORES), len(masks))) for split in SPLITS}
        self.batch = np.zeros((len(SCORES), len(masks), 0))
        self.scored = np.zeros(len(masks), dtype=bool)
        self.each: dict[str, ExampleScores] = {}
        for split, part in examples.items() if each else ():
            images: dict[str, int] = {}
            first = (next((image.key for image in task.pairs([e])[0].images), f"no image: {e.key}") for e in part)
            numbers = np.array([images.setdefault(key, len(images)) for key in first], np.int32)
            places = np.array([groups.index(task.group(e)) for e in part], np.int16)
            self.each[split] = ExampleScores.empty(len(masks), places, numbers, [e.key for e in part])
        if checkpoint is not None and checkpoint.is_file():
            self._restore(checkpoint)

    def score(self, evaluator: Evaluator, save_seconds: float, report: Callable[[float], Any]) -> None:
        """Score the masks on all examples that the checkpoint does not hold, batch by batch."""
        report(sum(self.done.values()) + self.batch.shape[2] * float(self.scored.mean()))
        for split in SPLITS:
            for start in range(self.done[split], len(self.examples[split]), evaluator.batch_size):
                chunk = self.examples[split][start : start + evaluator.batch_size]
                if not self.scored.any():
                    self.batch = np.zeros((*self.batch.shape[:2], len(chunk)))
                elif self.batch.shape[2] != len(chunk):
                    raise ValueError(
                        f"the checkpoint ends within a batch of {self.batch.shape[2]} examples, expected {len(chunk)}"
                    )
                self._score_batch(evaluator, chunk, save_seconds, report)
                if self.each:
                    self.each[split] = self.each[split].put(self.done[split], Scores(*self.batch))
                self.sums[split] += self.batch.sum(axis=2)
                self.done[split] += len(chunk)
                self.scored[:] = False
                self._save()

    def _score_batch(
        self, evaluator: Evaluator, chunk: Sequence[Any], save_seconds: float, report: Callable[[float], Any]
    ) -> None:
        todo = np.flatnonzero(~self.scored)
        if not len(todo):
            return
        earlier = self.spent - evaluator.spent
        saved = time.monotonic()

        def keep(rows: np.ndarray, scores: np.ndarray) -> None:
            nonlocal saved
            self.batch[:, todo[rows]] = scores
            self.scored[todo[rows]] = True
            if time.monotonic() - saved > save_seconds:
                self.spent = earlier + evaluator.spent
                self._save()
                saved = time.monotonic()
            report(len(chunk) * len(rows) / len(self.masks))

        evaluator.evaluate_each(self.masks[todo], chunk, keep)
        self.spent = earlier + evaluator.spent

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        meta = {"format": CHECKPOINT_FORMAT, **self.identity, "done": self.done, "spent": dataclasses.asdict(self.spent)}
        arrays: dict[str, np.ndarray] = dict(self.sums)
        if self.scored.any():
            arrays |= {"batch": self.batch, "scored": self.scored}
        for split, each in self.each.items():
            arrays |= each.arrays(split)
        buffer = io.BytesIO()
        np.savez(buffer, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        write_bytes(self.checkpoint, buffer.getvalue())

    def _restore(self, path: Path) -> None:
        try:
            arrays = read_arrays(path)
            meta = parse_json(str(arrays["meta"]), "its description", "begin a new run")
            done = {split: int(meta["done"][split]) for split in SPLITS}
            spent = build(Spending, meta["spent"])
            # Whatever the checkpoint lacks or has in addition differs, too.
            wanted = {"format": CHECKPOINT_FORMAT, **self.identity, "done": meta["done"], "spent": meta["spent"]}
            differing = [name for name in {**wanted, **meta} if meta.get(name) != wanted.get(name)]
            if differing:
                raise ValueError(f"it is of another table: {', '.join(differing)} differ")
            for split, own in self.sums.items():
                if (arrays[split].shape, arrays[split].dtype) != (own.shape, own.dtype):
                    raise ValueError("its sums belong to other masks")
                self.sums[split] = arrays[split]
            for split, each in self.each.items():
                if done[split]:
                    read = ExampleScores.from_arrays(arrays, split)
                    read.check(split, each.losses.shape[1], len(each.keys), len(self.identity["groups"]))
                    self.each[split] = read
            if "batch" in arrays:
                kinds = [(each.ndim, each.shape[:2], each.dtype) for each in (arrays["batch"], arrays["scored"])]
                if kinds != [(3, self.batch.shape[:2], self.batch.dtype), (1, self.scored.shape, self.scored.dtype)]:
                    raise ValueError("its batch belongs to other masks")
                self.batch = arrays["batch"]
                self.scored = arrays["scored"]
            self.done = done
            self.spent = spent
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path} cannot be resumed ({error}). Start a new run") from error
