"""Exhaustive tables: the scores of every mask of a model, so that a search can be judged without the model.

A table is an .npz file. Row `sum(mask[i] << i)` belongs to mask `mask`. Its arrays are `{split}_losses`, `{split}_metrics`
and `{split}_divergences` for the splits `reward` and `test`, each (2^n_layers,) float32; `macs`, (2^n_layers,) int64;
`statistics`, (n_layers, n_statistics) float32; and `meta`, a JSON text with the fields of `TableMeta`.

Format 1 has means over all examples. Format 2 also has every example, see `das_gym.tables.examples`: any batch of them, and
any group, such as a type of questions, can be scored.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.commands.commandline import format_command
from das_gym.commands.settings import build
from das_gym.engine.scores import Scores
from das_gym.files import parse_json, read_arrays, write_bytes
from das_gym.names import check_names
from das_gym.problem.budget import Budget, MaskCost, given_costs
from das_gym.problem.mask_space import masks_up_to
from das_gym.problem.rewards import REWARDS, Objective
from das_gym.problem.statistics import STATISTICS, single_removals, statistics_of_removals
from das_gym.tables.examples import ExampleScores, check_array

FORMATS = ("das_gym table 1", "das_gym table 2")
"""Of means alone, and with every example."""

SPLITS = ("reward", "test")
SCORES = ("losses", "metrics", "divergences")

MAX_LAYERS = 1024
MAX_MACS = 2**53
"""Limits for files: masks would fill the memory, and MACs would not be exact in float64."""


@dataclass(frozen=True)
class TableMeta:
    """How a table was made.

    Attributes:
        env_id: The environment whose masks it scores.
        layer_names: Names of the layers, in mask order.
        metric_name: What `metrics` measures.
        macs_full: MACs of the model without adapters, per example.
        reward_examples, test_examples: Number of examples of each split.
        statistics: Names of the columns of `statistics`, which were measured on the reward examples.
        hashes: Hashes of `model`, `supernet`, `reward_data`, `test_data`; if one differs, the scores are not valid.
        versions: Of Python and the libraries that made it.
        max_skipped: Largest number of layers that a mask in it skips; None = every mask is in it.
        costs: Costs of masks besides MACs, as `das_gym.problem.budget.given_costs` takes them. Latency has `measured`: the
            machine, threads, number format, and examples per forward pass.
        groups: Names of the groups of examples, as `SubnetTable.examples` numbers them; empty in a table of means.
        settings: `ProblemConfig.score_settings` of the problem.
    """

    env_id: str
    layer_names: tuple[str, ...]
    metric_name: str
    macs_full: int
    reward_examples: int
    test_examples: int
    statistics: tuple[str, ...]
    hashes: dict[str, str]
    versions: dict[str, str]
    max_skipped: int | None = None
    costs: dict[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SubnetTable:
    """Scores of every mask, or of every mask of at most `most_skipped` layers, on the reward and the test split.

    Methods share some arguments. `by` is `loss` or `divergence` (nats), the name of a reward or an `Objective`; `split` is
    `reward` or `test`. A budget is `skip_num` (exact number of skipped layers) or `macs_saved` (least share of MACs saved);
    without one, the objective's applies, or none. A name that the table does not have is a ValueError.

    Attributes:
        meta: The environment, layers, examples and versions that it was made with.
        scores: By split, (n_masks,) float32 losses (nats, inf where a loss was not finite), metrics (0..1) and divergences.
        macs: (n_masks,) int64 MACs of an example.
        statistics: (n_layers, n_statistics) float32, what the environment observes.
        examples: By split, the scores of each example; None in a table of means.
        group_statistics: (n_groups, n_layers, n_statistics) float32: `statistics` of each of `meta.groups`; None in a table
            of means.

    Example:
        >>> from das_gym.registration import ASSETS
        >>> table = SubnetTable.load(ASSETS / "meter_mini" / "vqa_table.npz")
        >>> table.best(skip_num=4).astype(int)
        array([0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0])
    """

    meta: TableMeta
    scores: Mapping[str, Scores]
    macs: np.ndarray
    statistics: np.ndarray
    examples: Mapping[str, ExampleScores] | None = None
    group_statistics: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"too many layers: got {self.n_layers:,}, expected at most {MAX_LAYERS:,}")
        if not 1 <= self.meta.macs_full <= MAX_MACS:
            raise ValueError(f"`macs_full` is out of range: got {self.meta.macs_full:,}, expected 1 to {MAX_MACS:,}")
        rows = len(self.masks)
        statistics = (self.n_layers, len(self.meta.statistics))
        check_array("macs", self.macs, "iu", (rows,), 0, MAX_MACS)
        check_array("statistics", self.statistics, "f", statistics)
        for split in SPLITS:
            scores = self.scores[split]
            check_array(f"{split}_losses", scores.losses, "f", (rows,), 0, np.inf)
            check_array(f"{split}_metrics", scores.metrics, "f", (rows,), 0, 1)
            check_array(f"{split}_divergences", scores.divergences, "f", (rows,), 0, np.inf, may_lack=True)
        if self.examples is not None:
            for split, count in zip(SPLITS, (self.meta.reward_examples, self.meta.test_examples), strict=True):
                self.examples[split].check(split, rows, count, len(self.meta.groups))
            check_array("group_statistics", self.group_statistics, "f", (len(self.meta.groups), *statistics))

    @property
    def n_layers(self) -> int:
        """Number of skippable layers."""
        return len(self.meta.layer_names)

    @property
    def most_skipped(self) -> int:
        """Largest number of layers that a mask of the table skips."""
        return self.n_layers if self.meta.max_skipped is None else self.meta.max_skipped

    @cached_property
    def masks(self) -> np.ndarray:
        """(n_masks, n_layers) bool: the masks, in the order of rows."""
        return masks_up_to(self.n_layers, self.meta.max_skipped)

    @cached_property
    def layer_macs(self) -> MaskCost:
        """MACs of any mask."""
        # MACs add up over units, so that masks of single units give those of all.
        alone = self.index(np.eye(self.n_layers, dtype=bool))
        return MaskCost(self.meta.macs_full, int(self.macs[0]), self.macs[0] - self.macs[alone])

    @cached_property
    def costs(self) -> Mapping[str, MaskCost]:
        """Costs of masks, by the keys of `das_gym.problem.budget.SAVED` that the table holds."""
        return {"macs_saved": self.layer_macs, **given_costs(self.meta.costs)}

    @cached_property
    def macs_saved(self) -> np.ndarray:
        """(n_masks,) float64 share of `macs_full` that each mask saves."""
        return 1 - self.macs / self.meta.macs_full

    def index(self, masks: np.ndarray) -> np.ndarray:
        """Return (...) int64 rows of (..., n_layers) masks, bool or 0/1; ValueError for masks that are not in the table."""
        array = np.asarray(masks)
        if array.ndim == 0 or array.shape[-1] != self.n_layers:
            raise ValueError(f"masks have the wrong shape: got {array.shape}, expected (..., {self.n_layers})")
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            wrong = array[~np.isin(array, (0, 1))][0]
            raise ValueError(f"masks hold other values: got {wrong}, expected 0 (keep) or 1 (skip)")
        rows = self.rows(array)
        if (rows < 0).any():
            raise ValueError(
                f"masks are not in this table: got one that skips {int(array[rows < 0][0].sum())} layers, expected at most "
                f"{self.meta.max_skipped}"
            )
        return rows

    def rows(self, masks: np.ndarray) -> np.ndarray:
        """Return (...) int64 rows of (..., n_layers) bool masks as `index` does, but -1 for masks outside the table."""
        numbers: np.ndarray = masks.astype(np.int64) @ self._bits
        if self.meta.max_skipped is None:
            return numbers
        known, rows = self._numbered
        # Masks beyond the last are looked for at the last, and found to differ.
        places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        return np.where(known[places] == numbers, rows[places], -1)

    @cached_property
    def _bits(self) -> np.ndarray:
        return 1 << np.arange(self.n_layers, dtype=np.int64)

    @cached_property
    def _numbered(self) -> tuple[np.ndarray, np.ndarray]:
        numbers = self.masks.astype(np.int64) @ self._bits
        order = np.argsort(numbers)
        return numbers[order], order

    def float64_scores(self, split: str) -> Scores:
        """Return the scores of a split in float64, from which rewards are computed."""
        check_names([split], SPLITS, "split")
        losses, metrics, divergences = (getattr(self.scores[split], name).astype(np.float64) for name in SCORES)
        return Scores(losses, metrics, divergences, full_loss=float(losses[0]))

    @property
    def separate_groups(self) -> tuple[str, ...]:
        """Groups with a separate table, see `group_table`; empty if the table holds means, or only one group."""
        if self.examples is None or len(self.meta.groups) < 2:
            return ()
        least = np.minimum(*self.group_sizes().values())
        return tuple(name for name, size in zip(self.meta.groups, least, strict=True) if name and size)

    def group_sizes(self) -> dict[str, np.ndarray]:
        """Return the number of examples in each group, (n_groups,) int64, by split; empty in a table of means."""
        return {split: part.group_sizes(len(self.meta.groups)) for split, part in (self.examples or {}).items()}

    def group_table(self, group: str) -> SubnetTable:
        """Return the table of means over a group of examples, with its statistics; ValueError without scores of examples."""
        if self.examples is None or self.group_statistics is None:
            raise ValueError(f"`group` is not supported: {self.meta.env_id} holds means. Make a table with `each=True`.")
        check_names([group], self.meta.groups, "group of this table")
        number = self.meta.groups.index(group)
        counts: dict[str, Any] = {f"{split}_examples": int(sizes[number]) for split, sizes in self.group_sizes().items()}
        if not all(counts.values()):
            raise ValueError(f"`group` has no examples in a split: got {group!r} with {counts}. Choose another group.")
        scores = {split: part.means(np.flatnonzero(part.groups == number)) for split, part in self.examples.items()}
        meta = dataclasses.replace(self.meta, **counts, groups=())
        return SubnetTable(meta, scores, self.macs, self.group_statistics[number])

    def statistic(self, name: str) -> np.ndarray:
        """Return a layer statistic, (n_layers,) float32, that the table holds or that follows from its losses."""
        if name in self.meta.statistics:
            return self.statistics[:, self.meta.statistics.index(name)]
        known = dict.fromkeys((*self.meta.statistics, *statistics_of_removals()))
        if name in STATISTICS and name not in known:
            raise ValueError(
                f"statistic {name!r} cannot be computed from a table: got one with {', '.join(known)}. It needs the model: "
                f"use {self.meta.env_id}, or make a table that holds it"
            )
        check_names([name], known, "statistic of this table")
        statistic = STATISTICS[name]
        assert statistic.of_removals is not None
        return statistic.bounded(statistic.of_removals(self.removal_losses), self.n_layers).astype(np.float32)

    @property
    def removal_losses(self) -> np.ndarray:
        """(n_layers + 1,) float64 losses in nats of the full model and of each layer removed alone, on the reward split."""
        return self.values("loss")[self.index(single_removals(self.n_layers))]

    def values(self, by: str | Objective = "loss", split: str = "reward") -> np.ndarray:
        """Return (n_masks,) float64: losses and divergences in nats (smaller is better), or rewards (larger is better)."""
        scores = self.float64_scores(split)
        if isinstance(by, Objective):
            return by.rewards(self.masks, scores)
        check_names([by], ("loss", "divergence", *REWARDS), "value")
        if by in REWARDS:
            return REWARDS[by].compute(scores)
        return getattr(scores, {"loss": "losses", "divergence": "divergences"}[by])

    def within(self, skip_num: int | None = None, macs_saved: float | None = None) -> np.ndarray:
        """Return (n_masks,) bool: masks that satisfy the budget."""
        return Budget(self.n_layers, skip_num, macs_saved, self.layer_macs).is_feasible(self.masks)

    def best(self, by: str | Objective = "loss", split: str = "reward", **budget: Any) -> np.ndarray:
        """Return the best mask within the budget, (n_layers,) bool. Of equally good masks, it has the fewest MACs."""
        rows = np.flatnonzero(self._competing(by, **budget))
        order = np.lexsort((self.macs[rows], -self._goodness(by, split)[rows]))
        return self.masks[rows[order[0]]].copy()

    def rank(self, masks: np.ndarray, by: str | Objective = "loss", split: str = "reward", **budget: Any) -> np.ndarray:
        """Return (...) int64 ranks of (..., n_layers) masks within the budget, 1 = best; ValueError for others."""
        rows = self._rows_within(masks, self._competing(by, **budget))
        return self.rank_of_values(self.values(by, split)[rows], by, split, **budget)

    def rank_of_values(
        self, values: np.ndarray, by: str | Objective = "loss", split: str = "reward", **budget: Any
    ) -> np.ndarray:
        """Return (...) int64 ranks of (...) values in the unit of `by` among the masks within the budget, 1 = best."""
        ordered = np.sort(self._goodness(by, split)[self._competing(by, **budget)])
        return 1 + len(ordered) - np.searchsorted(ordered, values if _larger_is_better(by) else -values, side="right")

    def regret(self, masks: np.ndarray, by: str | Objective = "loss", split: str = "reward", **budget: Any) -> np.ndarray:
        """Return (...) float64: how much worse each mask is than the best within the budget, in the unit of `by`."""
        within = self._competing(by, **budget)
        goodness = self._goodness(by, split)
        return goodness[within].max() - goodness[self._rows_within(masks, within)]

    def describe(self, mask: np.ndarray) -> dict[str, float | int]:
        """Return MACs and both splits' loss, metric and divergence of an (n_layers,) mask, by name."""
        row = int(self.index(mask))
        known: dict[str, float | int] = {"macs": int(self.macs[row]), "macs_saved": float(self.macs_saved[row])}
        for split in SPLITS:
            for name, word in zip(SCORES, ("loss", "metric", "divergence"), strict=True):
                known[f"{split}_{word}"] = float(getattr(self.scores[split], name)[row])
        return known

    def save(self, path: str | Path) -> None:
        """Write the file atomically. Equal tables give equal bytes."""
        arrays = {f"{split}_{name}": getattr(self.scores[split], name) for split in SPLITS for name in SCORES}
        for split, part in (self.examples or {}).items():
            arrays |= part.arrays(split)
        if self.group_statistics is not None:
            arrays["group_statistics"] = self.group_statistics
        meta = json.dumps({"format": FORMATS[self.examples is not None], **dataclasses.asdict(self.meta)})
        buffer = io.BytesIO()
        # numpy dates all members of the archive 1980: equal tables give equal bytes.
        np.savez_compressed(buffer, **arrays, macs=self.macs, statistics=self.statistics, meta=np.array(meta))
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> SubnetTable:
        """Read a file that `save` wrote; FileNotFoundError if it does not exist, ValueError if it is no such file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no table at {path}; `{format_command('agents table')}` makes one")
        try:
            return cls._from_arrays(read_arrays(path))
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path} is not a table of this version of das_gym ({error}); make it again") from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, Any]) -> SubnetTable:
        meta = parse_json(str(arrays["meta"]), "its description", "make it again")
        form = meta.pop("format", None) if isinstance(meta, dict) else None
        if form not in FORMATS:
            raise ValueError(f"its format is not {' or '.join(map(repr, FORMATS))}")
        scores = {split: Scores(*(arrays[f"{split}_{name}"] for name in SCORES)) for split in SPLITS}
        common = build(TableMeta, meta), scores, arrays["macs"], arrays["statistics"]
        if form == FORMATS[0]:
            return cls(*common)
        examples = {split: ExampleScores.from_arrays(arrays, split) for split in SPLITS}
        return cls(*common, examples, arrays["group_statistics"])

    def _competing(self, by: str | Objective, **budget: Any) -> np.ndarray:
        if isinstance(by, Objective) and not any(value is not None for value in budget.values()):
            return by.budget.is_feasible(self.masks)
        return self.within(**budget)

    def _goodness(self, by: str | Objective, split: str) -> np.ndarray:
        values = self.values(by, split)
        if np.isnan(values).any():
            raise ValueError(
                f"this table holds no {by} of the {split} split: make it again with `{format_command('agents table')}`"
            )
        return values if _larger_is_better(by) else -values

    def _rows_within(self, masks: np.ndarray, within: np.ndarray) -> np.ndarray:
        rows = self.index(masks)
        if not within[rows].all():
            raise ValueError("a mask violates the budget. Leave the budget out, or give one that every mask satisfies.")
        return rows


def _larger_is_better(by: str | Objective) -> bool:
    return isinstance(by, Objective) or by in REWARDS
