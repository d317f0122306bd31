"""A suite: tables of many models, and the problems that they give: a table, a group of its examples and a budget.

A folder holds tables and `suite.json`, which assigns each table to a split. All problems of a split lie in one set of
arrays, so that hundreds of episodes on different problems step with a few look-ups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.commands.settings import build
from das_gym.files import absolute_path, read_json
from das_gym.names import check_names, nearest_name
from das_gym.problem.budget import SAVED, Budget, MaskCost, is_whole
from das_gym.problem.rewards import find_reward
from das_gym.problem.statistics import DEFAULT_STATISTICS, check_statistics
from das_gym.registration import ASSETS, CHECKPOINT_TABLES, checkpoint_table
from das_gym.tables.table import SubnetTable

SUITE_FILE = "suite.json"
FORMAT = "das_gym suite 1"
SUITE_SPLITS = ("train", "valid", "test")

MAX_UNITS = 16
"""Default number of units to which observations and actions are padded."""

BUDGET_KINDS = {"count": "skip_num", **{setting.removesuffix("_saved"): setting for setting in SAVED}}
"""Kinds of budgets, and the setting of each."""

DEFAULT_BUDGETS = ("count", "macs")
"""The kinds that give problems unless others are asked for."""

COUNT_SHARES = (0.25, 0.4, 0.5, 0.6)
"""Budgets by count: these shares of the units, rounded."""

SAVED_SHARES = (0.25, 0.5)
"""Budgets by cost: these shares of what skipping everything saves."""

MIN_MASKS = 20
"""A problem with fewer masks to choose from is left out."""

MIN_GAIN = 1e-3
"""A problem whose best mask earns less than this more than a random mask is left out: there is nothing to find."""

MIN_SCALED_REWARD = -1.0
"""The lowest scaled reward of a feasible mask."""


@dataclass(frozen=True)
class SuiteTable:
    """One table of a suite.

    Attributes:
        file: Name of its file in the folder of the index, or the id of a bundled table, a key of `CHECKPOINT_TABLES`.
        split: Split of the suite that its problems belong to.
        model, task: As in `ProblemConfig`.
        name: Name of the model whose masks it scores.
    """

    file: str
    split: str
    model: str
    task: str
    name: str

    def __post_init__(self) -> None:
        check_names([self.split], SUITE_SPLITS, "split")
        if self.file in ("", ".", "..") or "/" in self.file or "\\" in self.file:
            raise ValueError(f"`file` is not allowed: got {self.file!r}, expected the name of a table in the index's folder")

    def load(self, folder: Path) -> SubnetTable:
        """Read the table; `folder` is that of the index."""
        return SubnetTable.load(checkpoint_table(self.file) if self.file in CHECKPOINT_TABLES else folder / self.file)


def suite_record(tables: Iterable[SuiteTable], seed: int) -> dict[str, Any]:
    """Return the index as its file holds it."""
    return {"format": FORMAT, "seed": seed, "tables": [dataclasses.asdict(table) for table in tables]}


@dataclass(frozen=True, eq=False)
class SuiteProblem:
    """One problem of a suite.

    Attributes:
        source: Its table's entry.
        group: The group of examples that score its masks; empty = all.
        budget: The constraint on its masks.
        table: The scores of its masks, as means over these examples.
        rewards: (n_masks,) float64 raw rewards, in the order of the table's rows.
        random_mean: Mean reward of skipping units in a random order until the budget is satisfied.
        optimum: Reward of the best mask.
    """

    source: SuiteTable
    group: str
    budget: Budget
    table: SubnetTable
    rewards: np.ndarray
    random_mean: float
    optimum: float

    @property
    def name(self) -> str:
        """A unique name in the suite: model, task, group and budget."""
        words = " ".join(f"{key}={value}" for key, value in self.budget.settings.items() if value is not None)
        return "/".join((self.source.name, self.source.task, self.group or "all", words))

    @property
    def cost(self) -> MaskCost:
        """The cost that its budget limits: MACs if it is a number of units."""
        return self.table.layer_macs if self.budget.cost is None else self.budget.cost

    @property
    def larger_masks(self) -> np.ndarray:
        """(m, n_layers) bool: one mask of each size that is not in the table, such as 4, 5, ..., 30 units; often none."""
        sizes = np.arange(self.table.most_skipped + 1, self.table.n_layers + 1)
        return np.arange(self.table.n_layers) < sizes[:, None]

    @property
    def masks(self) -> np.ndarray:
        """(n_rows, n_layers) bool: the masks of the table, then `larger_masks`."""
        return np.concatenate([self.table.masks, self.larger_masks])

    def rows(self, masks: np.ndarray) -> np.ndarray:
        """Return (m,) int64 rows of (m, n_layers) bool masks in `masks`."""
        places = self.table.rows(masks)
        larger = len(self.table.masks) - self.table.most_skipped - 1 + masks.sum(axis=1)
        return np.where(places < 0, larger, places)

    def saved(self, setting: str) -> np.ndarray:
        """Return (n_rows,) float64: the share of a cost, a key of `SAVED`, that each mask saves; NaN = unknown."""
        larger = self.larger_masks
        known = self.table.costs.get(setting)
        return np.append(self.table.saved(setting), np.full(len(larger), np.nan) if known is None else known.saved(larger))

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Return (...) rewards as the environment gives them: 0 = the random mean, 1 = the optimum, at least -1."""
        return np.maximum((rewards - self.random_mean) / (self.optimum - self.random_mean), MIN_SCALED_REWARD)


def random_probabilities(masks: np.ndarray, kept: np.ndarray, useful: np.ndarray) -> np.ndarray:
    """Return (n_masks,) float64: how likely a random order of the useful units arrives at each mask.

    Units are skipped one after another, each remaining one with the same probability, until the budget is satisfied.

    Args:
        masks: (2^n, n) bool, row `sum(mask[i] << i)` is that mask.
        kept: (2^n,) bool, which masks satisfy the budget. Of the masks that some order reaches, none that satisfies it
            may be part of another that does not.
        useful: (n,) bool, units that serve the budget.
    """
    allowed = ~(masks & ~useful).any(axis=1)
    count = int(useful.sum())
    sizes = masks.sum(axis=1)
    # A mask of s units is reached in (s - 1)! orders of those before the last, times (count - s)! of those after it.
    orders = np.array([math.factorial(max(s - 1, 0)) * math.factorial(max(count - s, 0)) for s in range(masks.shape[1] + 1)])
    lasts = np.zeros(len(masks))  # units that can be the last one skipped: without them the budget is not yet satisfied
    for unit in np.flatnonzero(useful):
        skips = masks[:, unit]
        lasts[skips] += ~kept[np.flatnonzero(skips) - (1 << unit)]
    found = np.where(kept & allowed, lasts * (orders / math.factorial(count))[sizes], 0.0)
    found[0] = float(kept[0])
    return found


def table_budgets(table: SubnetTable, kinds: Sequence[str]) -> Iterator[Budget]:
    """Yield the budgets under which a table gives problems; it must know the costs of `kinds`."""
    n = table.n_layers
    if table.meta.max_skipped is not None:  # it lacks masks on the way to a budget by cost
        if "count" in kinds:
            yield Budget(n, table.most_skipped)
        return
    for kind in kinds:
        if kind == "count":
            for skip_num in sorted({round(share * n) for share in COUNT_SHARES}):
                if math.comb(n, skip_num) >= MIN_MASKS:
                    yield Budget(n, skip_num)
            continue
        cost = table.costs[BUDGET_KINDS[kind]]
        for share in SAVED_SHARES:
            # Rounded down: the name stays short, and the saving within reach.
            saved = math.floor(1000 * share * cost.range[1]) / 1000
            if saved > 0:
                yield Budget(n, saved=saved, cost=cost)


def table_problems(
    source: SuiteTable,
    table: SubnetTable,
    reward: str = "exp_neg_loss",
    budgets: Sequence[str] = DEFAULT_BUDGETS,
) -> list[SuiteProblem]:
    """Return the problems of a table, without trivial ones; ValueError if it lacks the cost of a budget."""
    for kind in budgets:
        setting = BUDGET_KINDS[kind]
        if kind != "count" and setting not in table.costs:
            raise ValueError(
                f"{source.file} holds no {kind} of its units: leave {kind!r} out of `budgets`, or add it with "
                "`python -m benchmarks.make_suite --out FOLDER`"
            )
    parts = {"": table, **{group: table.group_table(group) for group in table.separate_groups}}
    rewards = {group: find_reward(reward).compute(part.float64_scores("reward")) for group, part in parts.items()}
    problems = []
    for budget in table_budgets(table, budgets):
        kept = budget.is_feasible(table.masks)
        if kept.sum() < MIN_MASKS:
            continue
        if table.meta.max_skipped is None:
            chances = random_probabilities(table.masks, kept, budget.useful_layers)
        else:  # every mask with the budget's number of units is equally likely
            chances = kept / kept.sum()
        for group, part in parts.items():
            mean = float(chances @ rewards[group])
            best = float(rewards[group][kept].max())
            if best - mean >= MIN_GAIN:
                problems.append(SuiteProblem(source, group, budget, part, rewards[group], mean, best))
    return problems


class Suite:
    """The problems of one split (P), in arrays.

    Attributes:
        units: (P, max_units) bool, which units there are; `max_units` is what observations and actions are padded to.
        observed: (P, max_units, n_statistics) float32, 0 where there is no unit.
        savings: (P, max_units) float32, share of the budget's own cost that skipping a unit saves; MACs for `skip_num`.
        useful: (P, max_units) bool, units that serve the budget.
        goals: (P, 2) float32: share of units to skip, or 0; share of that cost to save, or 0.
        raw, scaled, losses, metrics, kept, saved: One entry for each mask of each problem, see `rows`.
        other_costs: The costs besides MACs, keys of `SAVED`, that budgets of the suite limit.
        random_means, optima: (P,) as for `SuiteProblem`.
    """

    def __init__(
        self,
        problems: Sequence[SuiteProblem],
        statistics: Iterable[str] | None = None,
        max_units: int = MAX_UNITS,
        made_by: tuple[Callable[..., Suite], tuple[Any, ...]] | None = None,
    ) -> None:
        if not problems:
            raise ValueError("`problems` is empty: a suite needs one or more")
        self.problems = tuple(problems)
        self.max_units = max_units
        self.made_by = made_by
        self.statistics = DEFAULT_STATISTICS if statistics is None else tuple(statistics)
        count = len(problems)
        self.units = np.zeros((count, max_units), bool)
        self.useful = np.zeros((count, max_units), bool)
        self.savings = np.zeros((count, max_units), np.float32)
        self.observed = np.zeros((count, max_units, len(self.statistics)), np.float32)
        self.goals = np.zeros((count, 2), np.float32)
        for row, problem in enumerate(problems):
            n = problem.table.n_layers
            table = problem.table
            budget = problem.budget
            self.units[row, :n] = True
            self.useful[row, :n] = budget.useful_layers
            self.savings[row, :n] = problem.cost.savings / problem.cost.full
            self.observed[row, :n] = np.stack([table.statistic(name) for name in self.statistics], axis=1)
            self.goals[row] = (budget.skip_num or 0) / n, budget.saved or 0.0
        # The entries of problem p begin at _first[p]; the number of a mask is added.
        violations = [problem.budget.violations(problem.masks) for problem in problems]
        sizes = [len(each) for each in violations]
        self._first = np.cumsum([0, *sizes[:-1]])
        self._bits = 1 << np.arange(max_units, dtype=np.int64)
        self._partial = [row for row, problem in enumerate(problems) if len(problem.rewards) < sizes[row]]
        off = np.concatenate(violations)
        self.kept = off == 0
        self.raw = _joined([problem.rewards for problem in problems], sizes)
        scaled = _joined([problem.scaled(problem.rewards) for problem in problems], sizes)
        self.scaled = np.where(self.kept, scaled, MIN_SCALED_REWARD - off)
        self.losses = _joined([problem.table.values("loss") for problem in problems], sizes)
        self.metrics = _joined([problem.table.values("metric") for problem in problems], sizes)
        self.saved = np.concatenate([problem.saved(problem.cost.setting) for problem in problems])
        self._saved_of: dict[str, np.ndarray] = {}
        settings = dict.fromkeys(problem.cost.setting for problem in problems)
        self.other_costs = tuple(setting for setting in settings if setting != "macs_saved")
        self.random_means = np.array([problem.random_mean for problem in problems])
        self.optima = np.array([problem.optimum for problem in problems])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made_by or super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Suite:
        return self  # its arrays are large, and never changed

    @cached_property
    def fixed_observations(self) -> dict[str, np.ndarray]:
        """Observations of the problems before any unit is skipped, by name, (P, size) float32 each."""
        return {
            "statistics": self.observed.reshape(len(self.problems), -1),
            "units": self.units.astype(np.float32),
            "savings": self.savings,
            "budget": self.goals,
        }

    @cached_property
    def flat_observations(self) -> np.ndarray:
        """(P, size) float32: `fixed_observations` in one array."""
        return np.concatenate(list(self.fixed_observations.values()), axis=1)

    @cached_property
    def saved_full(self) -> np.ndarray:
        """(P,) share of the budget's own cost that the full model saves: negative by what its adapters cost."""
        return self.saved[self._first]

    def saved_of(self, cost: str) -> np.ndarray:
        """Return (rows,) float64: the share of a cost, a key of `SAVED`, that masks of all problems save; NaN = unknown."""
        if cost not in self._saved_of:
            self._saved_of[cost] = np.concatenate([problem.saved(cost) for problem in self.problems])
        return self._saved_of[cost]

    def rows(self, which: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Return (m,) int64 places of (m, max_units) masks in the flat arrays; units that a model lacks count as kept."""
        places: np.ndarray = (masks & self.units[which]) @ self._bits
        for row in self._partial:
            here = which == row
            problem = self.problems[row]
            places[here] = problem.rows(masks[here, : problem.table.n_layers])
        return self._first[which] + places

    def skip_highest(self, which: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return (m, max_units) bool: units skipped from the highest score down, until the budget is satisfied."""
        # Units that serve no purpose come last, where they are never reached.
        order = np.argsort(np.where(self.useful[which], -scores, np.inf), axis=1, kind="stable")
        masks = np.zeros((len(which), self.max_units), bool)
        everyone = np.arange(len(which))
        for place in range(self.max_units):
            going = ~self.kept[self.rows(which, masks)]
            if not going.any():
                break
            masks[everyone[going], order[going, place]] = True
        return masks

    def index(self, problem: int | str) -> int:
        """Return the number of a problem, given its number or its name; ValueError for unknown ones."""
        if is_whole(problem) and 0 <= int(problem) < len(self.problems):
            return int(problem)
        names = [each.name for each in self.problems]
        if problem in names:
            return names.index(str(problem))
        near = nearest_name(problem, names)
        hint = f" Did you mean {near!r}?" if near else f" Names are such as {names[0]!r}."
        raise ValueError(f"`problem` is unknown: got {problem!r}, expected 0..{len(names) - 1} or a name.{hint}")


def _joined(parts: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return (sum(sizes),) float64: the parts one after another, each padded with NaN to its size."""
    padded = [np.pad(part, (0, size - len(part)), constant_values=np.nan) for part, size in zip(parts, sizes, strict=True)]
    return np.concatenate(padded)


def read_suite(folder: str | Path | None = None) -> tuple[Path, tuple[SuiteTable, ...]]:
    """Return the folder and the index of a suite; FileNotFoundError without, ValueError for a damaged index."""
    path = ASSETS / "suite" if folder is None else absolute_path(folder)
    index = path / SUITE_FILE
    if not index.is_file():
        raise FileNotFoundError(f"no {SUITE_FILE} in {path}; make one by `python -m benchmarks.make_suite --out FOLDER`")
    record: Any = read_json(index)
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        return path, tuple(build(SuiteTable, table) for table in record["tables"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is damaged or of another version ({error}): make the suite again") from error


def load_suite(
    folder: str | Path | None = None,
    split: str = "train",
    reward: str = "exp_neg_loss",
    statistics: Iterable[str] | str | None = None,
    seed: int = 0,
    budgets: str | Iterable[str] = DEFAULT_BUDGETS,
    problems: int | None = None,
    max_units: int = MAX_UNITS,
) -> Suite:
    """Return the problems of a split, from a process-wide cache: do not change them. ValueError for wrong arguments.

    Problems of kinds other than `DEFAULT_BUDGETS` come last, so that the others have the same numbers with and without them.

    The arguments are those of `das_gym.envs.suite_env.SuiteEnv`; `seed` is its `problems_seed`.
    """
    check_names([split], SUITE_SPLITS, "split")
    if not is_whole(seed) or seed < 0:
        raise ValueError(f"`problems_seed` is out of range: got {seed!r}, expected an integer of at least 0")
    given = (budgets,) if isinstance(budgets, str) else tuple(budgets)
    check_names(given, BUDGET_KINDS, "kind of budget")
    if not given:
        raise ValueError(f"`budgets` is empty: expected one or more of {', '.join(BUDGET_KINDS)}")
    kinds = tuple(kind for kind in BUDGET_KINDS if kind in given)
    if not is_whole(max_units) or max_units < 1:
        raise ValueError(f"`max_units` is out of range: got {max_units!r}, expected an integer of at least 1")
    names = None if statistics is None else tuple(each.name for each in check_statistics(statistics))
    path, tables = read_suite(folder)
    stamp = (path / SUITE_FILE).stat().st_mtime_ns
    suite = _load_suite(path, stamp, tables, split, reward, names, kinds, max_units)
    suite.made_by = (load_suite, (folder, split, reward, names, seed, kinds, None, max_units))
    if problems is None:
        return suite
    if not is_whole(problems) or not 1 <= problems <= len(suite.problems):
        raise ValueError(f"`problems` is out of range: got {problems!r}, expected 1..{len(suite.problems)} or None")
    drawn = [suite.problems[place] for place in np.random.default_rng(seed).permutation(len(suite.problems))[:problems]]
    return Suite(drawn, names, max_units, (load_suite, (folder, split, reward, names, seed, kinds, problems, max_units)))


@lru_cache(maxsize=8)
def _load_suite(
    path: Path,
    stamp: int,
    tables: tuple[SuiteTable, ...],
    split: str,
    reward: str,
    statistics: tuple[str, ...] | None,
    budgets: tuple[str, ...],
    max_units: int,
) -> Suite:
    del stamp  # part of the cache's key: a suite that was made again is loaded again
    found: list[SuiteProblem] = []
    for source in tables:
        table = source.load(path) if source.split == split else None
        if table is not None and table.n_layers <= max_units:
            found += table_problems(source, table, reward, budgets)
    if not found:
        raise ValueError(f"`max_units` leaves no problem of {split!r}: got {max_units}. Every model has more units.")
    settings = list(BUDGET_KINDS.values())
    last_default = BUDGET_KINDS[DEFAULT_BUDGETS[-1]]
    # Sorting is stable: problems of the default budgets keep their order, and so their numbers.
    found.sort(key=lambda problem: max(settings.index(problem.cost.setting), settings.index(last_default)))
    return Suite(found, statistics, max_units)
