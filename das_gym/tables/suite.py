"""A suite: tables of many models, and the problems that they give, each a table, a group of its examples and a budget.

A folder holds tables and `suite.json`, which says in which split each is. All problems of a split lie in one set of arrays,
so that hundreds of episodes on different problems go one step with a few look-ups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.config import build, check_names, nearest_names
from das_gym.files import absolute, read_json
from das_gym.problem.budget import Budget, is_whole
from das_gym.problem.mask_cost import MaskCost
from das_gym.problem.rewards import find_reward
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

SUITE_FILE = "suite.json"
FORMAT = "das_gym suite 1"
SUITE_SPLITS = ("train", "valid", "test")

MAX_UNITS = 16
"""What observations and actions are padded to."""

BUDGET_KINDS = {"count": "skip_num", "macs": "macs_saved", "latency": "latency_saved"}
"""Kinds of budgets, and the setting that says each."""

DEFAULT_BUDGETS = ("count", "macs")
"""Those that give problems unless others are asked for."""

COUNT_SHARES = (0.25, 0.4, 0.5, 0.6)
"""Budgets by count: these shares of the units, rounded."""

SAVED_SHARES = (0.25, 0.5)
"""Budgets by MACs or latency: these shares of what skipping everything saves."""

FEWEST_MASKS = 20
"""A problem with fewer masks to choose from is left out."""

LEAST_SPREAD = 1e-3
"""One whose best mask earns less than this more than a random one is left out: there is nothing to find."""

RELATIVE_UNITS = 3
"""A relative of a model lacks one to so many of its units."""

RELATIVE_REWARD = 0.5
"""Its exp(-loss) is at least this share of the model's: one that is broken teaches nothing."""

WORST = -1.0
"""What a mask earns at least that keeps its budget, scaled."""


@dataclass(frozen=True)
class SuiteTable:
    """One table of a suite.

    Attributes:
        file: Beside the index.
        split: Whose problems it gives.
        model, task: As in `ProblemConfig`.
        name: Of the one model that it is of.
    """

    file: str
    split: str
    model: str
    task: str
    name: str

    def __post_init__(self) -> None:
        if self.split not in SUITE_SPLITS:
            raise ValueError(f"split={self.split!r} of {self.file}: use one of {', '.join(SUITE_SPLITS)}")
        if self.file in ("", ".", "..") or "/" in self.file or "\\" in self.file:
            raise ValueError(f"file={self.file!r}: it must be the name of a table beside the index")


def suite_record(tables: Iterable[SuiteTable], seed: int) -> dict[str, Any]:
    """The index as its file holds it."""
    return {"format": FORMAT, "seed": seed, "tables": [dataclasses.asdict(table) for table in tables]}


@dataclass(frozen=True, eq=False)
class SuiteProblem:
    """One problem of a suite.

    Attributes:
        source: Its table's entry.
        group: The group of examples that score its masks; empty = all.
        budget: What its masks must satisfy.
        table: Their scores, as means over these examples.
        rewards: (n_masks,) float64 raw rewards, in the order of the table's rows.
        random_mean: What skipping units one after another at random earns in the mean, until the budget is kept.
        optimum: What the best mask earns.
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
        """Tells it from every other of its suite: model, group and budget."""
        words = " ".join(f"{key}={value}" for key, value in self.budget.settings.items() if value is not None)
        return "/".join((self.source.name, self.source.task, self.group or "all", words))

    @property
    def cost(self) -> MaskCost:
        """What its budget is about: a cost, or MACs where it is about how many units are skipped."""
        return self.table.layer_macs if self.budget.cost is None else self.budget.cost

    @property
    def saved(self) -> np.ndarray:
        """(n_masks,) float64 share of that cost that each mask saves."""
        return self.table.macs_saved if self.cost.setting == "macs_saved" else self.cost.saved(self.table.masks)

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards as the environment gives them: 0 = the random mean, 1 = the optimum, -1 at least."""
        return np.maximum((rewards - self.random_mean) / (self.optimum - self.random_mean), WORST)


def random_probabilities(masks: np.ndarray, kept: np.ndarray, useful: np.ndarray) -> np.ndarray:
    """(n_masks,) float64: how likely a random order of the useful units arrives at each mask.

    Units are skipped one after another, every one that is left as likely, until the budget is kept.

    Args:
        masks: (2^n, n) bool, row `sum(mask[i] << i)` is that mask.
        kept: (2^n,) bool, which of them keep the budget; of masks that some order reaches, none that keeps it is a part of
            another that does not.
        useful: (n,) bool, units that serve the budget.
    """
    allowed = ~(masks & ~useful).any(axis=1)
    count, sizes = int(useful.sum()), masks.sum(axis=1)
    orders = np.array([math.factorial(max(s - 1, 0)) * math.factorial(max(count - s, 0)) for s in range(masks.shape[1] + 1)])
    lasts = np.zeros(len(masks))
    for unit in np.flatnonzero(useful):
        skips = masks[:, unit]
        lasts[skips] += ~kept[np.flatnonzero(skips) - (1 << unit)]
    found = np.where(kept & allowed, lasts * (orders / math.factorial(count))[sizes], 0.0)
    found[0] = float(kept[0])
    return found


def budget_kinds(budgets: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds of budgets as they are given, one or several, in the order of `BUDGET_KINDS`.

    Raises:
        ValueError: an unknown one, or none.
    """
    given = (budgets,) if isinstance(budgets, str) else tuple(budgets) if isinstance(budgets, Iterable) else ()
    if not given:
        raise ValueError(f"budgets={budgets!r}: give one or more of {', '.join(BUDGET_KINDS)}")
    check_names(given, BUDGET_KINDS, "kind of budget")
    return tuple(kind for kind in BUDGET_KINDS if kind in given)


def budgets_of(table: SubnetTable, kinds: Sequence[str] = DEFAULT_BUDGETS) -> Iterator[Budget]:
    """The budgets under which a table gives problems.

    Args:
        table: It knows the costs that are asked for.
        kinds: Keys of `BUDGET_KINDS`.
    """
    n = table.n_layers
    for kind in kinds:
        if kind == "count":
            for skip_num in sorted({round(share * n) for share in COUNT_SHARES}):
                if math.comb(n, skip_num) >= FEWEST_MASKS:
                    yield Budget(n, skip_num)
            continue
        cost = table.costs[BUDGET_KINDS[kind]]
        for share in SAVED_SHARES:
            saved = math.floor(1000 * share * cost.range[1]) / 1000
            if saved > 0:
                yield Budget(n, saved=saved, cost=cost)


def relatives_of(table: SubnetTable, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Units, up to `count` sets of them, without any of which a model is another one that still does its task."""
    earned = table.values("exp_neg_loss")
    skipped = table.masks.sum(axis=1)
    fitting = (skipped >= 1) & (skipped <= RELATIVE_UNITS) & (earned >= RELATIVE_REWARD * earned[0])
    drawn = rng.permutation(np.flatnonzero(fitting))[:count]
    return [tuple(np.flatnonzero(table.masks[row]).tolist()) for row in drawn]


def problems_of(
    source: SuiteTable,
    table: SubnetTable,
    reward: str = "exp_neg_loss",
    without: tuple[int, ...] = (),
    budgets: Sequence[str] = DEFAULT_BUDGETS,
) -> Iterator[SuiteProblem]:
    """Every problem that a table gives; those where there is nothing to choose or to find are left out.

    Args:
        source: Its entry.
        table: It.
        reward: What is earned, see `das_gym.problem.rewards.REWARDS`; groups give no problems where it is not known of them,
            as divergences are not.
        without: Units that are skipped for good: the problems of what is left.
        budgets: Kinds of budgets, see `BUDGET_KINDS`.

    Raises:
        ValueError: a budget by latency, where nobody timed the units.
    """
    for kind in budgets:
        if kind != "count" and BUDGET_KINDS[kind] not in table.costs:
            raise ValueError(
                f"{source.file} does not know the {kind} of its units: leave {kind!r} out of budgets, or have them timed "
                "with `python -m benchmarks.make_suite with out=FOLDER retime=<the folder of the tables>`"
            )
    parts = {"": table, **{group: table.group_table(group) for group in table.groups_apart}}
    if without:
        parts = {group: part.without(without) for group, part in parts.items()}
        table = parts[""]
        source = dataclasses.replace(source, name=f"{source.name} without {'+'.join(map(str, without))}")
    rewards = {group: find_reward(reward).compute(part.float64_scores("reward")) for group, part in parts.items()}
    found = []
    for budget in budgets_of(table, budgets):
        kept = budget.is_kept_by(table.masks)
        if kept.sum() < FEWEST_MASKS:
            continue
        chances = random_probabilities(table.masks, kept, budget.useful_layers)
        for group, part in parts.items():
            mean, best = float(chances @ rewards[group]), float(rewards[group][kept].max())
            if best - mean >= LEAST_SPREAD:
                found.append(SuiteProblem(source, group, budget, part, rewards[group], mean, best))
    yield from found


class Suite:
    """The problems of one split, in arrays.

    Args:
        problems: Them.
        statistics: Names of the layer statistics to observe.

    Attributes:
        problems: (P) as given.
        statistics: Names of the statistics.
        units: (P, MAX_UNITS) bool, which units there are.
        observed: (P, MAX_UNITS, n_statistics) float32, 0 where there is no unit.
        savings: (P, MAX_UNITS) float32, share of the budget's own cost that skipping a unit saves; of MACs under a budget by
            count.
        useful: (P, MAX_UNITS) bool, units that serve the budget.
        goals: (P, 2) float32: share of units to skip, or 0; share of that cost to save, or 0.
        made_by: A function and its arguments that make it again: it is pickled as these. None = it is pickled whole.

    Raises:
        ValueError: no problem at all, a model of too many units, or a statistic that a table lacks.
    """

    def __init__(self, problems: Iterable[SuiteProblem], statistics: Iterable[str] | None = None) -> None:
        self.problems = tuple(problems)
        if not self.problems:
            raise ValueError("a suite needs at least one problem")
        held = self.problems[0].table.meta.statistics
        self.statistics = held if statistics is None else tuple(statistics)
        count = len(self.problems)
        self.units = np.zeros((count, MAX_UNITS), bool)
        self.useful = np.zeros((count, MAX_UNITS), bool)
        self.savings = np.zeros((count, MAX_UNITS), np.float32)
        self.observed = np.zeros((count, MAX_UNITS, len(self.statistics)), np.float32)
        self.goals = np.zeros((count, 2), np.float32)
        for row, problem in enumerate(self.problems):
            self._fill(row, problem)
        sizes = [len(problem.rewards) for problem in self.problems]
        self._first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self._bits = 1 << np.arange(MAX_UNITS, dtype=np.int64)
        self.raw = np.concatenate([problem.rewards for problem in self.problems])
        self.kept = np.concatenate([problem.budget.is_kept_by(problem.table.masks) for problem in self.problems])
        self.scaled = np.concatenate([self._scaled(problem) for problem in self.problems])
        self.losses = np.concatenate([problem.table.values("loss") for problem in self.problems])
        self.metrics = np.concatenate([problem.table.float64_scores("reward").metrics for problem in self.problems])
        self.saved = np.concatenate([problem.saved for problem in self.problems])
        self.macs_saved, self.latency_saved = self.saved, None
        if any(problem.cost.setting == "latency_saved" for problem in self.problems):
            self.macs_saved = np.concatenate([problem.table.macs_saved for problem in self.problems])
            self.latency_saved = np.concatenate([self._latency_saved(problem) for problem in self.problems])
        self.random_means = np.array([problem.random_mean for problem in self.problems])
        self.optima = np.array([problem.optimum for problem in self.problems])
        self.made_by: tuple[Callable[..., Suite], tuple[Any, ...]] | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made_by or super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Suite:
        """Itself: its arrays are many, and nobody changes them."""
        return self

    def _fill(self, row: int, problem: SuiteProblem) -> None:
        n, table = problem.table.n_layers, problem.table
        if n > MAX_UNITS or table.meta.max_skipped is not None:
            raise ValueError(f"{problem.source.file} has {n} units; a suite takes whole tables of {MAX_UNITS} at most")
        self.units[row, :n] = True
        self.useful[row, :n] = problem.budget.useful_layers
        self.savings[row, :n] = problem.cost.savings / problem.cost.full
        self.observed[row, :n] = np.stack([table.statistic(name) for name in self.statistics], axis=1)
        self.goals[row] = (problem.budget.skip_num or 0) / n, problem.budget.saved or 0.0

    @staticmethod
    def _latency_saved(problem: SuiteProblem) -> np.ndarray:
        known = problem.table.costs.get("latency_saved")
        return np.full(len(problem.rewards), np.nan) if known is None else known.saved(problem.table.masks)

    @staticmethod
    def _scaled(problem: SuiteProblem) -> np.ndarray:
        off = problem.budget.violations(problem.table.masks)
        return np.where(off > 0, WORST - off, problem.scaled(problem.rewards))

    @cached_property
    def known(self) -> dict[str, np.ndarray]:
        """What is observed of the problems before anything is skipped, by name, (P, size) float32 each."""
        return {
            "statistics": self.observed.reshape(len(self.problems), -1),
            "units": self.units.astype(np.float32),
            "savings": self.savings,
            "budget": self.goals,
        }

    @cached_property
    def known_flat(self) -> np.ndarray:
        """(P, size) float32: `known` in one."""
        return np.concatenate(list(self.known.values()), axis=1)

    @cached_property
    def saved_whole(self) -> np.ndarray:
        """(P,) share of the budget's own cost that the unskipped model saves: what adapters cost, negative."""
        count = len(self.problems)
        return self.saved[self.rows(np.arange(count), np.zeros((count, MAX_UNITS), bool))]

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of each statistic, (n_statistics,) float32."""
        chosen = [STATISTICS[name] for name in self.statistics]
        return np.array([s.low for s in chosen], np.float32), np.array([s.high for s in chosen], np.float32)

    def rows(self, which: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """(m,) int64: where the flat arrays hold (m, MAX_UNITS) bool masks of problems `which` ((m,) int64).

        Units that are not there count as kept.
        """
        places: np.ndarray = self._first[which] + (masks & self.units[which]) @ self._bits
        return places

    def skip_highest(self, which: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(m, MAX_UNITS) bool: units skipped from the highest of (m, MAX_UNITS) scores down, until the budget is kept."""
        m = len(which)
        order = np.argsort(np.where(self.useful[which], -scores, np.inf), axis=1, kind="stable")
        masks, everyone = np.zeros((m, MAX_UNITS), bool), np.arange(m)
        for place in range(MAX_UNITS):
            going = ~self.kept[self.rows(which, masks)]
            if not going.any():
                break
            masks[everyone[going], order[going, place]] = True
        return masks

    def index(self, problem: int | str) -> int:
        """The number of a problem by its number or its name.

        Raises:
            ValueError: there is none.
        """
        if isinstance(problem, str):
            names = [each.name for each in self.problems]
            if problem not in names:
                near = nearest_names(problem, names)
                hint = f"; did you mean {near[0]!r}?" if near else ", or a name such as " + repr(names[0])
                raise ValueError(f"problem={problem!r}: this split has problems 0..{len(names) - 1}{hint}")
            return names.index(problem)
        if not is_whole(problem) or not 0 <= problem < len(self.problems):
            raise ValueError(f"problem={problem!r}: this split has problems 0..{len(self.problems) - 1}")
        return int(problem)


def bundled_suite() -> Path:
    """Where the suite lies that comes with das_gym."""
    return ASSETS / "suite"


def read_suite(folder: str | Path | None = None) -> tuple[Path, tuple[SuiteTable, ...]]:
    """The index of a suite.

    Args:
        folder: That of the tables; None is the bundled one.

    Raises:
        FileNotFoundError: no suite there.
        ValueError: it is damaged, or of another version.
    """
    path = bundled_suite() if folder is None else absolute(folder)
    if not (path / SUITE_FILE).is_file():
        raise FileNotFoundError(f"no {SUITE_FILE} in {path}; make one by `python -m benchmarks.make_suite with out=FOLDER`")
    record: Mapping[str, Any] = read_json(path / SUITE_FILE)
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("tables"), list):
        raise ValueError(f"{path / SUITE_FILE} is no index of this version ({FORMAT!r}); make the suite again")
    try:
        return path, tuple(build(SuiteTable, table) for table in record["tables"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path / SUITE_FILE} is damaged ({error}); make the suite again") from error


def load_suite(
    folder: str | Path | None = None,
    split: str = "train",
    reward: str = "exp_neg_loss",
    statistics: tuple[str, ...] | None = None,
    relatives: int = 0,
    relatives_seed: int = 0,
    budgets: str | Iterable[str] = DEFAULT_BUDGETS,
) -> Suite:
    """The problems of a split, from a process-wide cache: do not change its arrays.

    Problems of latency come behind all others, so that those have the same numbers with them and without.

    Args:
        folder: That of the tables; None is the bundled one.
        split: One of `SUITE_SPLITS`.
        reward: What is scaled, see `das_gym.problem.rewards.REWARDS`.
        statistics: Names of the layer statistics to observe; None = all that the tables hold.
        relatives: Besides every model so many others, of its masks: what is left without one to three of its units is a
            model, too, whose masks the table knows.
        relatives_seed: Draws which.
        budgets: Kinds of budgets, one or several, see `BUDGET_KINDS`.

    Raises:
        ValueError: an unknown split, reward, statistic or kind of budget, a damaged table, or one that does not know the
            latency that is asked for.
        FileNotFoundError: no suite, or a table of it is missing.
    """
    check_names([split], SUITE_SPLITS, "split")
    if not is_whole(relatives) or relatives < 0:
        raise ValueError(f"relatives={relatives!r} is not allowed; use 0 or more")
    path, tables = read_suite(folder)
    stamp = (path / SUITE_FILE).stat().st_mtime_ns
    kinds = budget_kinds(budgets)
    suite = _load_suite(path, stamp, tables, split, reward, statistics, relatives, relatives_seed, kinds)
    suite.made_by = (load_suite, (folder, split, reward, statistics, relatives, relatives_seed, kinds))
    return suite


@lru_cache(maxsize=8)
def _load_suite(
    path: Path,
    stamp: int,
    tables: tuple[SuiteTable, ...],
    split: str,
    reward: str,
    statistics: tuple[str, ...] | None,
    relatives: int,
    relatives_seed: int,
    budgets: tuple[str, ...],
) -> Suite:
    del stamp  # part of the cache's key: a suite made anew is loaded anew
    found: list[SuiteProblem] = []
    for number, source in enumerate(entry for entry in tables if entry.split == split):
        table = SubnetTable.load(path / source.file)
        rng = np.random.default_rng([relatives_seed, number])
        for without in ((), *(relatives_of(table, relatives, rng) if relatives else ())):
            found += problems_of(source, table, reward, without, budgets)
    found.sort(key=lambda problem: problem.cost.setting == "latency_saved")
    return Suite(found, statistics)
