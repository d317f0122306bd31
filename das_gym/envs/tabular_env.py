"""The environment of DAS without a model: every score is looked up in an exhaustive table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from das_gym.commandline import format_command
from das_gym.config import check_arguments, check_names
from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.scored_env import ScoredEnv
from das_gym.envs.scored_vector_env import ScoredVectorEnv
from das_gym.envs.scoring import REWARD_BATCHES, Outcome, Scorer, next_places
from das_gym.files import absolute
from das_gym.problem.budget import BUDGET_SETTINGS, pick_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.mask_cost import SAVED, MaskCost, given_costs
from das_gym.problem.rewards import Objective, find_reward
from das_gym.problem.statistics import DEFAULT_STATISTICS, statistic_names
from das_gym.registration import DEFAULT_MODEL, DEFAULT_TASK, MODELS, TASKS, find_environment
from das_gym.tables.table import SCORES, SubnetTable

LIVE_SETTINGS = ("latency_batch", *ProblemConfig.__dataclass_fields__)
"""What only `SkipEnv` takes, `model` and `task` aside."""


class TableScorer(Scorer):
    """Scores masks by looking them up.

    Args:
        table: Where.
        budget: What binds masks, see `pick_budget`.
        reward: Name of the reward.
        macs_price: What saving all MACs would be worth, in units of the reward.
        statistics: Names of the layer statistics to observe; None = those of `DEFAULT_STATISTICS` that the table holds.
        split: Whose scores count, `reward` or `test`.
        costs: What masks cost where the table does not tell, see `given_costs`.

    Raises:
        ValueError: a setting that is not allowed, or that the table cannot answer.
    """

    def __init__(
        self,
        table: SubnetTable,
        budget: Mapping[str, Any] = MappingProxyType({}),
        reward: str = "exp_neg_loss",
        macs_price: float = 0.0,
        statistics: str | Iterable[str] | None = None,
        split: str = "reward",
        costs: Mapping[str, Any] | str | None = None,
    ) -> None:
        self.table, self._costs = table, {**given_costs(table.meta.costs), **given_costs(costs)}
        bound = pick_budget(table.n_layers, budget, self.cost_of)
        most = table.meta.max_skipped
        if most is not None and (bound.skip_num is None or bound.skip_num > most):
            raise ValueError(f"this table holds masks of up to {most} skipped layers: give skip_num=0..{most}")
        objective = Objective(bound, find_reward(reward), table.layer_macs, macs_price)
        usual = [name for name in DEFAULT_STATISTICS if name in table.meta.statistics] or table.meta.statistics
        super().__init__(table.meta.layer_names, objective, usual if statistics is None else statistics)
        self.split, self._scores = split, table.float64_scores(split)
        self._told: dict[bytes, tuple[float, dict[str, Any]]] = {}
        self._observation = np.stack([self.statistic(each.name) for each in self.statistics], axis=1).reshape(-1)
        if self.objective.reward.needs_divergences and np.isnan(table.values("divergence", split)).any():
            raise ValueError(f"reward={reward!r} needs divergences, which this table lacks; choose another reward")

    def cost_of(self, setting: str) -> MaskCost:
        """As `Scorer.cost_of`.

        Raises:
            ValueError: neither the table nor anybody else tells.
        """
        if setting == "macs_saved":
            return self.table.layer_macs
        if setting in self._costs:
            return self._costs[setting]
        live = self.table.meta.env_id
        if setting == "latency_saved":
            raise ValueError(
                f"{setting}: a table runs nothing that could be timed; give costs=<a file of figures>, such as {live} "
                f"with {setting} keeps in the cache folder's latency/, or search {live} itself"
            )
        raise ValueError(
            f"{setting}: this table was made before tables told {SAVED[setting]}; count it anew with "
            f"`{format_command('agents table', 'recount=FILE out=FILE')}`, or search {live} itself"
        )

    def statistic(self, name: str) -> np.ndarray:
        """As `Scorer.statistic`: what the table holds, or what the losses of its masks tell."""
        return self.table.statistic(name)

    def score(self, masks: np.ndarray, rng: np.random.Generator, ended: np.ndarray | None = None) -> Outcome:
        """As `Scorer.score`; what the whole table earns is computed once, and then looked up."""
        rows = self.table.rows(masks)
        if not self._exact or (rows < 0).any():
            return super().score(masks, rng, ended)
        rewards = self._known.rewards[rows]
        info = {key: values[rows] for key, values in self._known.info.items()}
        scored = info["feasible"]
        if ended is not None and not ended.all():
            scored, rewards = scored & ended, np.where(ended, rewards, 0.0)
            info["loss"][~ended], info["metric"][~ended] = np.inf, 0.0
        return Outcome(rewards, {**info, "evaluations": self._count(rewards, scored)})

    def score_one(self, masks: np.ndarray, rng: np.random.Generator, ended: bool) -> tuple[float, dict[str, Any]]:
        """As `Scorer.score_one`."""
        found = self._told.get(key := masks.tobytes())
        if found is None:
            row = int(self.table.rows(masks[0])) if self._exact else -1
            if row < 0:
                return super().score_one(masks, rng, ended)
            found = self._told[key] = float(self._known.rewards[row]), self._known.row(row)
        reward, told = found
        if not ended:
            return 0.0, {**told, "loss": np.inf, "metric": 0.0, "evaluations": self.evaluations}
        if told["feasible"]:
            self.evaluations += 1
            if reward > self.best_so_far:
                self.improvements.append((self.evaluations, reward))
        return reward, {**told, "evaluations": self.evaluations}

    def unskipped_info(self) -> dict[str, Any]:
        """As `Scorer.unskipped_info`."""
        return {**self._unskipped_info, "evaluations": self.evaluations}

    @cached_property
    def _unskipped_info(self) -> dict[str, Any]:
        return super().unskipped_info()

    @cached_property
    def _exact(self) -> bool:
        """Whether what masks cost does not depend on how many are asked about at a time.

        Sums of whole numbers do not; those of milliseconds are rounded as the order goes in which they are added.
        """
        cost = self.budget.cost
        return cost is None or bool((cost.savings == np.round(cost.savings)).all())

    @cached_property
    def _known(self) -> Outcome:
        """What each mask of the table gets, in the order of its rows; counted as no evaluation."""
        before = self.get_state()
        known = super().score(self.table.masks, np.random.default_rng(0))  # draws nothing
        self.set_state(before)
        return known

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """As `Scorer.measure`; nothing is drawn."""
        del rng
        return self._rows(self.table.rows(masks))

    def measure_unskipped(self) -> Scores:
        """As `Scorer.measure_unskipped`."""
        return self._rows(np.zeros(1, dtype=np.int64))

    def observation(self) -> np.ndarray:
        """As `Scorer.observation`: what was measured on the examples of the table."""
        return self._observation.copy()

    def architecture(self) -> Architecture:
        """As `Scorer.architecture`."""
        return Architecture.of_table(self.table)

    def _rows(self, rows: np.ndarray) -> Scores:
        scores = Scores(*(getattr(self._scores, name)[rows] for name in SCORES))
        missing = rows < 0
        if self.table.meta.max_skipped is not None and missing.any():
            worst = zip(SCORES, (np.inf, 0.0, np.inf), strict=True)
            return Scores(*(np.where(missing, value, getattr(scores, name)) for name, value in worst))
        return scores


class ExampleScorer(TableScorer):
    """Scores masks by looking up what single examples score: on any batch of them, as `MaskScorer` does with the model.

    Args:
        table: Where; one with every example (format 2).
        reward_examples: Examples that score a mask, None = all of the split.
        reward_batches: As for `MaskScorer`.
        others: As for `TableScorer`.

    Raises:
        ValueError: a table of means, a reward that needs divergences, or what `TableScorer` refuses.
    """

    _exact = False

    def __init__(self, table: SubnetTable, reward_examples: int | None, reward_batches: str, **others: Any) -> None:
        check_names([reward_batches], REWARD_BATCHES, "reward_batches")
        if table.examples is None:
            raise ValueError(
                f"reward_examples={reward_examples}, reward_batches={reward_batches!r}: this table holds means over all "
                f"examples alone; leave them out, make a table with `{format_command('agents table', '... each=True')}`, or "
                f"search {table.meta.env_id} itself"
            )
        super().__init__(table, **others)
        if self.objective.reward.needs_divergences:
            raise ValueError(f"reward={self.objective.reward.name!r}: tables keep no divergences example by example")
        self._each = table.examples[self.split]
        total = len(self._each.keys)
        if reward_examples is not None and reward_examples < 1:
            raise ValueError(f"reward_examples={reward_examples}: a mask is scored on at least one example")
        self.reward_batches, self.batch_size = reward_batches, min(reward_examples or total, total)

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """As `Scorer.measure`, on the examples of the next step."""
        total = len(self._each.keys)
        places, self.position = next_places(self.reward_batches, self.batch_size, total, self.position, rng)
        return self._on(places, self.table.rows(masks))

    def measure_unskipped(self) -> Scores:
        """As `Scorer.measure_unskipped`, on the first examples."""
        return self._on(np.arange(self.batch_size), np.zeros(1, np.int64))

    def _on(self, places: np.ndarray, rows: np.ndarray) -> Scores:
        found = self._each.means(places, rows)
        return Scores(*(np.asarray(getattr(found, name), np.float64) for name in SCORES))


class TabularEnv(ScoredEnv):
    """`SkipEnv` at the speed of a table.

    ## Description
    As `das_gym.SkipEnv` with `reward_batches="fixed"` and all the reward examples of the table, or, where the table
    has every example (`python -m agents table with each=True`), with any batches of them; for research on agents: the same
    actions, observations, rewards and `info`, without the model. What is optimal is known:
    `env.get_wrapper_attr("table")` answers with best masks, ranks, regrets and Pareto fronts.

    ## Action Space
    As `SkipEnv`'s.

    ## Observation Space
    As `SkipEnv`'s: the table holds the layer statistics, measured on its reward examples.

    ## Rewards
    As `SkipEnv`'s, to float32 rounding of losses and metrics.

    ## Starting State
    As `SkipEnv`'s.

    ## Episode End
    As `SkipEnv`'s.

    ## Information
    As `SkipEnv`'s.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` looks n masks up at once (`python -m benchmarks.tabular` says how fast).

    ## References
    DAS: arXiv 2309.01479.

    ## Version History
    v0: first.

    Args:
        skip_num, macs_saved, action, reward, macs_price, statistics, render_mode, latency_saved, parameters_saved,
            memory_saved, costs: As for `SkipEnv`; `statistics=None` observes the same, as far as the table holds
            them, and `latency_saved` needs `costs`, since a table has nothing to time.
        split: Whose scores count: `reward`, or `test` to see what a search would find that could look at the test split.
        group: A group of examples that alone counts, such as a type of questions; None = all. The table must have every
            example.
        reward_examples, reward_batches: As for `SkipEnv`, of a table with every example: scores are the model's to the
            rounding of float16 losses. Observed are the statistics on all its reward examples.
        table: Path of a table, see `python -m agents table`; None is the bundled one.
        model: Whose bundled table; the id sets it.
        task: On which task; the id sets it.
        others: None there are; what only the environment with a model has is refused with its id.

    Raises:
        ValueError: a setting that is not allowed; the text says what is.
        FileNotFoundError: no such table.
    """

    def __init__(
        self,
        skip_num: int | str | None = "auto",
        macs_saved: float | None = None,
        action: str = "mask",
        reward: str = "exp_neg_loss",
        macs_price: float = 0.0,
        statistics: str | Iterable[str] | None = None,
        split: str = "reward",
        group: str | None = None,
        reward_examples: int | None = None,
        reward_batches: str = "fixed",
        table: str | None = None,
        model: str = DEFAULT_MODEL,
        task: str = DEFAULT_TASK,
        render_mode: str | None = None,
        latency_saved: float | None = None,
        parameters_saved: float | None = None,
        memory_saved: float | None = None,
        costs: Mapping[str, Any] | str | None = None,
        **others: Any,
    ) -> None:
        statistics = None if statistics is None else statistic_names(statistics)
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "others")}
        _refuse(others, arguments, model, task)
        path = bundled_table(model, task) if table is None else absolute(table)
        whole = load_table(path)
        self.table = whole if group is None else whole.group_table(group)
        budget = {name: arguments[name] for name in BUDGET_SETTINGS}
        settings: dict[str, Any] = {"budget": budget, "reward": reward, "macs_price": macs_price, "statistics": statistics}
        settings |= {"split": split, "costs": costs}
        scorer: TableScorer
        if reward_examples is None and reward_batches == "fixed":
            scorer = TableScorer(self.table, **settings)
        else:
            scorer = ExampleScorer(self.table, reward_examples, reward_batches, **settings)
        super().__init__(scorer, action, render_mode, arguments)


class TabularVectorEnv(ScoredVectorEnv):
    """`num_envs` copies of `TabularEnv`, see `ScoredVectorEnv`: a step looks all their masks up at once."""

    env_class: ClassVar[type[ScoredEnv]] = TabularEnv


def _refuse(others: Iterable[str], known: Iterable[str], model: str, task: str) -> None:
    """Refuse arguments that the environment does not have.

    Raises:
        ValueError: says which id has it, or names the nearest.
    """
    for name in others:
        if name in LIVE_SETTINGS:
            check_names([model], MODELS, "model", own=True)
            check_names([task], TASKS, "task", own=True)
            live = find_environment(model, task).id
            raise ValueError(f"{name} is no argument here: a table has no model and no data of its own; {live} takes {name}")
    check_arguments(others, known)


def bundled_table(model: str, task: str) -> Path:
    """Where the table of a model and task lies that comes with das_gym.

    Raises:
        ValueError: there is none.
    """
    check_names([model], MODELS, "model", own=True)
    entry = find_environment(model, task)
    if entry.table is None:
        command = format_command("agents table", entry.short, "out=FILE")
        raise ValueError(
            f"no table of {model} on {task} is bundled. `{command}` makes one. Pass it as table=FILE; a search takes it as "
            "env_kwargs.table=FILE."
        )
    return entry.table


def load_table(path: Path) -> SubnetTable:
    """The table in a file, from a process-wide cache: do not change its arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table.
    """
    return _load_table(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=16)
def _load_table(path: Path, stamp: int) -> SubnetTable:
    del stamp  # part of the cache's key: a table made anew is loaded anew
    return SubnetTable.load(path)
