"""Scoring every mask of a problem: how exhaustive tables are made, and checked against a problem."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.config import build
from das_gym.engine.scores import Scores
from das_gym.engine.spending import Spending
from das_gym.files import BAD_ARRAYS, description_in, read_arrays, write_bytes
from das_gym.problem.cost_kinds import COST_KINDS
from das_gym.problem.loading import Problem, shuffled
from das_gym.problem.mask_cost import measure_cost
from das_gym.problem.mask_space import every_mask, masks_up_to
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import STATISTICS, check_statistics, compute_statistics
from das_gym.problem.unit_latency import UnitLatencies, latency_of
from das_gym.runs import library_versions
from das_gym.tables.examples import ExampleScores
from das_gym.tables.groups import GroupScores
from das_gym.tables.table import SCORES, SPLITS, SubnetTable, TableMeta
from das_gym.tasks.base import Task

CHECKPOINT_FORMAT = "das_gym table checkpoint 2"
EXAMPLES_MEASURED = 16
"""About so many examples have their images opened for a data hash."""
CONTENT = ("reward_content", "test_content")
"""Hashes that only format 2 has."""

COUNTED = tuple(name for name, kind in COST_KINDS.items() if kind.counted and name != "macs_saved")
"""Costs besides MACs that a table holds: they are the same on every machine."""
EXAMPLES_HASHED = 512
"""Examples whose targets are in memory at a time for a data hash."""


def table_examples(problem: Problem, split: str, count: int | None = None) -> tuple[Any, ...]:
    """The examples of a split that a table uses: the first `count` of those that environments shuffle, None = all.

    Raises:
        ValueError: fewer than one.
    """
    if count is not None and count < 1:
        raise ValueError(f"{split}_examples={count} is not allowed; use 1 or more, or None for the whole split")
    return shuffled(problem.task, getattr(problem.splits, split), count)


def problem_hashes(problem: Problem, reward: Sequence[Any], test: Sequence[Any]) -> dict[str, str]:
    """What a table of the problem depends on, as 16 hex digits each, the same on every machine; `content_hashes` are apart.

    Args:
        problem: The problem.
        reward: Examples that score masks.
        test: Examples that report them.

    Returns:
        `model`: frozen parameters. `supernet`: adapters, head and labels. `reward_data`, `test_data`: keys, tokens and
        targets of the examples in order, and the sizes of a few images.
    """
    tensors = {f"vlp.{name}": tensor for name, tensor in problem.vlp.tunable_state().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in problem.head.named_parameters()}
    return {
        "model": problem.backbone.base,
        "supernet": _digest([*problem.task.labels], tensors),
        "reward_data": _data_hash(problem.task, reward),
        "test_data": _data_hash(problem.task, test),
    }


def check_table(table: SubnetTable, problem: Problem) -> None:
    """Refuse a table that was not made from this problem.

    Raises:
        ValueError: another model, supernet or data; the text names it.
    """
    reward = table_examples(problem, "reward", table.meta.reward_examples)
    test = table_examples(problem, "test", table.meta.test_examples)
    hashes = problem_hashes(problem, reward, test)
    if table.examples is not None:
        hashes |= content_hashes(problem.task, reward, test)
    table.check_hashes(hashes)


def content_hashes(task: Task, reward: Sequence[Any], test: Sequence[Any]) -> dict[str, str]:
    """Of all pixels and texts of the examples, in order, 16 hex digits each."""
    return {name: _content_hash(task, part) for name, part in zip(CONTENT, (reward, test), strict=True)}


def _content_hash(task: Task, examples: Sequence[Any]) -> str:
    digest, known = hashlib.sha256(), dict[str, bytes]()
    for example in examples:
        for pair in task.pairs([example]):
            digest.update(pair.text.encode())
            for image in pair.images:
                if image.key not in known:
                    picture = image.open().convert("RGB")
                    known[image.key] = hashlib.sha256(str(picture.size).encode() + picture.tobytes()).digest()
                digest.update(known[image.key])
    return digest.hexdigest()[:16]


def recount(table: SubnetTable, problem: Problem) -> SubnetTable:
    """The table with all that masks cost counted anew, and its layer statistics measured anew; scores stay as they are.

    Raises:
        ValueError: it was not made from this problem.
    """
    check_table(table, problem)
    timed = {name: cost for name, cost in table.meta.costs.items() if name not in COUNTED}
    meta = dataclasses.replace(table.meta, macs_full=problem.costs.macs_full, costs=_costs(problem) | timed)
    macs = problem.costs.macs_cost.amounts(table.masks)
    return with_statistics(dataclasses.replace(table, meta=meta, macs=macs), problem)


def _costs(problem: Problem, latency_batch: int | None = None) -> dict[str, dict[str, Any]]:
    """What masks cost besides MACs: what can be counted, and latency where it is to be measured."""
    counted = {setting: measure_cost(problem, setting).as_dict() for setting in COUNTED}
    return counted | ({} if latency_batch is None else _timed(latency_of(problem, latency_batch)))


def _timed(latencies: UnitLatencies) -> dict[str, dict[str, Any]]:
    """Latency as a table holds it, with what it was measured on."""
    return {"latency_saved": {**latencies.cost.as_dict(), "measured": latencies.measured}}


def with_latency(table: SubnetTable, problem: Problem, batch: int = 1, processor_time: bool = False) -> SubnetTable:
    """The table with the latency of its units measured here; all else stays as it is.

    Latency does not depend on weights, so that a model of the same shape serves, trained or not.

    Args:
        table: Of units of the same names.
        problem: Whose units are timed, see `das_gym.problem.unit_latency.latency_of`.
        batch: Examples at a time.
        processor_time: As for `latency_of`.

    Raises:
        ValueError: other units.
    """
    if problem.layer_names != table.meta.layer_names:
        raise ValueError(
            f"a model with the units {', '.join(problem.layer_names)} cannot be timed for a table of "
            f"{', '.join(table.meta.layer_names)}"
        )
    costs = table.meta.costs | _timed(latency_of(problem, batch, processor_time))
    return dataclasses.replace(table, meta=dataclasses.replace(table.meta, costs=costs))


def _data_hash(task: Task, examples: Sequence[Any]) -> str:
    measured = task.pairs(examples[:: max(len(examples) // EXAMPLES_MEASURED, 1)])
    words = [str(image.open().size) for pair in measured for image in pair.images]
    for start in range(0, len(examples), EXAMPLES_HASHED):
        block = examples[start : start + EXAMPLES_HASHED]
        tokens = task.processor.tokens(task.pairs(block))
        words.append(_digest([example.key for example in block], {**tokens, **task.targets(block)}))
    return _digest(words, {})


def _digest(words: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(words).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Done:
    """How many examples of each split are scored."""

    reward: int
    test: int

    def __post_init__(self) -> None:
        if min(self.reward, self.test) < 0:
            raise ValueError(f"{self.reward} and {self.test} examples are done")


@dataclass
class _Progress:
    """What has been scored so far.

    Attributes:
        identity: What the table will be of; another identity is another table.
        sums: By split, (3, masks) float64 sums over examples of losses, metrics and divergences.
        each: By split, what each example scores; None where means are enough.
        places: By split, (examples,) the group of each example, as a number.
        group_sums: By split, (2, groups, masks) float64 sums over a group's examples of losses and metrics; no groups where
            they are not told apart, or each example is kept.
        done: By split, how many examples are in them.
        spent: What that cost.
    """

    identity: dict[str, Any]
    sums: dict[str, np.ndarray]
    each: dict[str, ExampleScores] | None
    places: dict[str, np.ndarray]
    group_sums: dict[str, np.ndarray]
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    spent: Spending = field(default_factory=Spending)

    def add(self, split: str, scores: Scores) -> None:
        """The (masks, m) scores of the next m examples."""
        if self.each is not None:
            self.each[split] = self.each[split].put(self.done[split], scores)
        self.sums[split] += np.stack([getattr(scores, name).sum(axis=1) for name in SCORES])
        groups = self.places[split][self.done[split] : self.done[split] + scores.losses.shape[1]]
        for group in np.unique(groups) if self.group_sums[split].size else ():
            mine = groups == group
            self.group_sums[split][:, group] += scores.losses[:, mine].sum(axis=1), scores.metrics[:, mine].sum(axis=1)
        self.done[split] += scores.losses.shape[1]

    def group_scores(self) -> dict[str, GroupScores]:
        """What each group scores in the mean, by split."""
        count = len(self.identity["groups"])
        sizes = {split: np.bincount(places, minlength=count) for split, places in self.places.items()}
        return {split: GroupScores.of_sums(sums, sizes[split]) for split, sums in self.group_sums.items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        meta = {"format": CHECKPOINT_FORMAT, **self.identity, "done": self.done, "spent": dataclasses.asdict(self.spent)}
        arrays = self.sums | {f"{split}_groups": sums for split, sums in self.group_sums.items()}
        for split, each in (self.each or {}).items():
            arrays |= each.arrays(split)
        buffer = io.BytesIO()
        np.savez(buffer, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is of another table.
        """
        try:
            arrays = read_arrays(path)
            meta = description_in(arrays, "begin a new run")
            form, done = meta.pop("format"), build(_Done, meta.pop("done"))
            self.spent = build(Spending, meta.pop("spent"))
            if form != CHECKPOINT_FORMAT:
                raise ValueError("it is of another version")
            differing = [name for name in {**meta, **self.identity} if meta.get(name) != self.identity.get(name)]
            if not differing:
                self._take(arrays, vars(done))
        except (*BAD_ARRAYS, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it to begin the table anew") from error
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} is of a table with {name}={meta.get(name)}, the problem now has {self.identity.get(name)}: model, "
                "supernet or data have changed since; begin a new run"
            )
        self.done = vars(done)

    def _take(self, arrays: Mapping[str, Any], done: Mapping[str, int]) -> None:
        """What a checkpoint of this table holds; a split of which nothing is done has no example to read."""
        sums, group_sums = ({split: arrays[split + end] for split in SPLITS} for end in ("", "_groups"))
        for found, own in ((sums, self.sums), (group_sums, self.group_sums)):
            if any((found[s].shape, found[s].dtype) != (own[s].shape, own[s].dtype) for s in SPLITS):
                raise ValueError("its sums are of other masks or groups")
        for split, each in (self.each or {}).items():
            if not done[split]:
                continue
            read = ExampleScores.of(arrays, split)
            read.check(split, sums[split].shape[1], len(each.keys), len(self.identity["groups"]))
            self.each[split] = read  # type: ignore[index]
        self.sums, self.group_sums = sums, group_sums


def build_table(
    problem: Problem,
    env_id: str,
    reward_examples: int | None = None,
    test_examples: int | None = None,
    checkpoint: Path | None = None,
    on_chunk: Callable[[int], Any] | None = None,
    max_skipped: int | None = None,
    each: bool = False,
    latency_batch: int | None = None,
) -> tuple[SubnetTable, Spending]:
    """Score every mask, or every one of few skipped layers, on the reward and the test split, batch by batch.

    Every batch walks the whole tree of masks once, so nothing is computed twice.

    Args:
        problem: Model, task and data.
        env_id: Its environment.
        reward_examples: How many examples of the reward split to use, None = all.
        test_examples: The same of the test split.
        checkpoint: File to write after every batch, and to go on from where there is one; the table is the same, bit
            for bit, as one that was not interrupted.
        on_chunk: Called with the number of examples done, first with those that the checkpoint holds.
        max_skipped: Masks of more skipped layers are left out; None = none are.
        each: Keep what each example scores (format 2).
        latency_batch: Measure the latency of units with so many examples at a time; None measures none.

    Returns:
        The table, and what it cost.

    Raises:
        ValueError: too many layers, or a checkpoint of another table.
    """
    width = len(problem.layer_names)
    masks = every_mask(width) if max_skipped is None else masks_up_to(width, max_skipped)
    examples = {
        "reward": table_examples(problem, "reward", reward_examples),
        "test": table_examples(problem, "test", test_examples),
    }
    hashes = problem_hashes(problem, examples["reward"], examples["test"])
    groups = sorted({problem.task.group(e) for part in examples.values() for e in part})
    if not each and len(groups) < 2:
        groups = []
    if each:
        hashes |= content_hashes(problem.task, examples["reward"], examples["test"])
    identity = {"env_id": env_id, "batch_size": problem.evaluator.batch_size, **hashes}
    identity |= {"max_skipped": max_skipped, "groups": groups}
    progress = _nothing_yet(problem.task, examples, identity, len(masks), each)
    _score_all(problem, masks, examples, progress, checkpoint, on_chunk)
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
        costs=_costs(problem, latency_batch),
        groups=tuple(groups),
    )
    scores = {split: _means(progress.sums[split] / len(examples[split])) for split in SPLITS}
    macs = problem.costs.macs_cost.amounts(masks)
    statistics = np.zeros((width, len(STATISTICS)), np.float32)
    by_group = np.zeros((len(groups), *statistics.shape), np.float32) if groups else None
    apart = None if each or not groups else progress.group_scores()
    table = SubnetTable(meta, scores, macs, statistics, progress.each, by_group, apart)
    return with_statistics(table, problem), progress.spent


def _score_all(
    problem: Problem,
    masks: np.ndarray,
    examples: Mapping[str, Sequence[Any]],
    progress: _Progress,
    checkpoint: Path | None,
    on_chunk: Callable[[int], Any] | None,
) -> None:
    """Add the scores of all examples, or of those that the checkpoint lacks, batch by batch; it is written after each."""
    if checkpoint is not None and checkpoint.is_file():
        progress.restore(checkpoint)
    if on_chunk is not None:
        on_chunk(sum(progress.done.values()))
    batch = problem.evaluator.batch_size
    for split in SPLITS:
        for start in range(progress.done[split], len(examples[split]), batch):
            chunk = examples[split][start : start + batch]
            progress.add(split, _score(problem, masks, chunk, progress.spent))
            if checkpoint is not None:
                progress.save(checkpoint)
            if on_chunk is not None:
                on_chunk(len(chunk))


def _nothing_yet(
    task: Task, examples: Mapping[str, Sequence[Any]], identity: dict[str, Any], masks: int, each: bool
) -> _Progress:
    """What is known before the first example is scored."""
    groups = identity["groups"]
    sums = {split: np.zeros((len(SCORES), masks)) for split in SPLITS}
    kept = {s: _unscored(task, part, masks, groups) for s, part in examples.items()} if each else None
    places = {s: np.array([groups.index(task.group(e)) if groups else 0 for e in part], int) for s, part in examples.items()}
    apart = 0 if each else len(groups)
    return _Progress(identity, sums, kept, places, {split: np.zeros((2, apart, masks)) for split in SPLITS})


def with_statistics(
    table: SubnetTable, problem: Problem, names: Sequence[str] | None = None, count: int | None = None
) -> SubnetTable:
    """The table with its layer statistics measured anew, those of its groups too; losses are taken from the table.

    Args:
        table: Of this problem.
        problem: The problem.
        names: Which statistics it is to hold; None = those that it holds.
        count: On how many of its reward examples they are measured; None = all.
    """
    names = table.meta.statistics if names is None else tuple(names)
    examples = table_examples(problem, "reward", table.meta.reward_examples)
    meta = dataclasses.replace(table.meta, statistics=names)
    statistics = _statistics(problem, examples[:count], names, table)
    if table.group_statistics is None:
        return dataclasses.replace(table, meta=meta, statistics=statistics)
    by_group = np.zeros((len(meta.groups), *statistics.shape), np.float32)
    sizes = np.minimum(*table.group_sizes().values())
    for number, group in enumerate(meta.groups):
        if sizes[number]:
            members = [e for e in examples if problem.task.group(e) == group]
            by_group[number] = _statistics(problem, members[:count], names, table.group_table(group))
    return dataclasses.replace(table, meta=meta, statistics=statistics, group_statistics=by_group)


def _unscored(task: Task, examples: Sequence[Any], masks: int, groups: Sequence[str]) -> ExampleScores:
    """What is known of examples before they are scored."""
    numbers: dict[str, int] = {}
    images = [numbers.setdefault(_first_image(task, e), len(numbers)) for e in examples]
    places = np.array([groups.index(task.group(e)) for e in examples], np.int16)
    return ExampleScores.empty(masks, places, np.array(images, np.int32), [e.key for e in examples])


def _first_image(task: Task, example: Any) -> str:
    """The key of an example's first image; of one that is about none its own, since it shares nothing with others."""
    images = task.pairs([example])[0].images
    return next((image.key for image in images), f"no image: {example.key}")


def _score(problem: Problem, masks: np.ndarray, chunk: Sequence[Any], spent: Spending) -> Scores:
    """(masks, examples) scores of the chunk, and their cost added to `spent`."""
    evaluator = problem.evaluator
    before = evaluator.spent
    scores = evaluator.evaluate_each(masks, chunk)
    for counter in dataclasses.fields(Spending):
        more = getattr(evaluator.spent, counter.name) - getattr(before, counter.name)
        setattr(spent, counter.name, getattr(spent, counter.name) + more)
    return scores


def _means(means: np.ndarray) -> Scores:
    """As float32; a mask with a broken batch is broken."""
    broken = ~np.isfinite(means[0])
    losses, metrics, divergences = np.where(broken, np.array([[np.inf], [0.0], [np.inf]]), means).astype(np.float32)
    return Scores(losses, metrics, divergences)


def _statistics(problem: Problem, examples: Sequence[Any], names: Sequence[str], table: SubnetTable) -> np.ndarray:
    """(n_layers, n_statistics) float32: what the environment observes on these examples."""
    activity = measure_activity(problem.evaluator, examples)

    def known_losses(masks: np.ndarray) -> np.ndarray:
        return table.values("loss", "reward")[table.index(masks)]

    known = None if table.meta.max_skipped is not None else known_losses
    inputs = StatisticInputs(problem.evaluator, problem.costs, examples, activity, known)
    return compute_statistics(check_statistics(names), inputs)
