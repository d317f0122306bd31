"""The environment of DAS without a model: every score is looked up in an exhaustive table."""

import inspect
import shlex
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from das_gym.commands.commandline import format_command
from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.episodes import ScoredEnv, ScoredVectorEnv
from das_gym.envs.scoring import Info, Scorer
from das_gym.files import absolute_path
from das_gym.names import check_arguments, check_names
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, MaskCost, given_costs, pick_budget
from das_gym.problem.rewards import Objective, find_reward
from das_gym.problem.statistics import DEFAULT_STATISTICS
from das_gym.registration import DEFAULT_MODEL, DEFAULT_TASK, MODELS, default_reward, find_environment
from das_gym.tables.table import SCORES, SubnetTable


class TableScorer(Scorer):
    """Scores masks by looking them up in a table; see `TabularEnv`."""

    scores_examples = False

    table: SubnetTable

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
        self.table = table
        self._costs = {**table.costs, **given_costs(costs)}
        most = table.meta.max_skipped
        bound = pick_budget(table.n_layers, budget, self.cost_of, most)
        # A mask that the table lacks raises an error when it is scored. Without a budget that is left to the agent: greedy
        # removal, say, asks for smaller masks than its answer.
        if most is not None and (bound.saved is not None or (bound.skip_num or 0) > most):
            raise ValueError(
                f"this table lacks masks of the budget: got {bound.describe()}, expected `skip_num` of 0..{most}"
            )
        objective = Objective(bound, find_reward(reward), table.layer_macs, macs_price)
        usual = [name for name in DEFAULT_STATISTICS if name in table.meta.statistics] or table.meta.statistics
        super().__init__(table.meta.layer_names, objective, usual if statistics is None else statistics)
        self.split = split
        self._scores = table.float64_scores(split)
        self._rows_known: dict[bytes, tuple[float, dict[str, Any]]] = {}
        self.observation()  # raises for a statistic that the table does not know
        if self.objective.reward.needs_divergences and np.isnan(table.values("divergence", split)).any():
            raise ValueError(f"`reward` is not supported: {reward} needs divergences, which this table lacks. Give another.")

    @property
    def fingerprint(self) -> str:
        return self.table.meta.hashes.get("model", "")

    def data_hash(self) -> str:
        return self.table.meta.hashes.get("reward_data", "")

    def cost_of(self, setting: str) -> MaskCost:
        """Return a cost that the table holds; ValueError if it lacks it."""
        if setting not in self._costs:
            live = self.table.meta.env_id
            raise ValueError(
                f"`{setting}` is not supported: this table does not hold the {SAVED[setting]} of its units. Give `costs`, "
                f"such as the file that {live} writes to the cache folder's latency/, or use {live} itself."
            )
        return self._costs[setting]

    def statistic(self, name: str) -> np.ndarray:
        return self.table.statistic(name)

    def architecture(self) -> Architecture:
        return Architecture.from_table(self.table)

    @property
    def metric_name(self) -> str:
        return self.table.meta.metric_name

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """Return the scores of the table; no examples are drawn."""
        rows = self.table.rows(masks)
        scores = {name: getattr(self._scores, name)[rows] for name in SCORES}
        missing = rows < 0  # more skipped layers than the table has
        if missing.any():
            worst = zip(SCORES, (np.inf, 0.0, np.inf), strict=True)
            scores = {name: np.where(missing, value, scores[name]) for name, value in worst}
        return Scores(**scores)

    def measure_fixed(self, masks: np.ndarray) -> Scores:
        return TableScorer.measure(self, masks, self.rng)

    # The rest is for speed: rewards and `info` of all masks are computed once, by `Scorer.score`, and then looked up.

    def score(
        self, masks: np.ndarray, rng: np.random.Generator | None = None, ended: np.ndarray | None = None
    ) -> tuple[np.ndarray, Info]:
        rows = self.table.rows(masks)
        if not self._exact or (rows < 0).any():
            return super().score(masks, rng, ended)
        rewards = self._known[0][rows]
        info = {key: values[rows] for key, values in self._known[1].items()}
        scored = info["feasible"]
        if ended is not None and not ended.all():
            scored = scored & ended
            rewards = np.where(ended, rewards, 0.0)
            info["loss"][~ended] = np.inf
            info["metric"][~ended] = 0.0
        return rewards, {**info, "evaluations": self._count(scored)}

    def score_one(self, masks: np.ndarray, rng: np.random.Generator, ended: bool) -> tuple[float, dict[str, Any]]:
        # The bytes of a short mask hash faster than its row is computed.
        key = masks.tobytes()
        known = self._rows_known.get(key)
        if known is None:
            row = int(self.table.rows(masks[0])) if self._exact else -1
            if row < 0:
                return super().score_one(masks, rng, ended)
            rewards, infos = self._known
            known = float(rewards[row]), {name: values[row].item() for name, values in infos.items()}
            self._rows_known[key] = known
        reward, info = known
        if not ended:
            return 0.0, {**info, "loss": np.inf, "metric": 0.0, "evaluations": self.evaluations}
        self.evaluations += info["feasible"]
        return reward, {**info, "evaluations": self.evaluations}

    def full_model_info(self) -> dict[str, Any]:
        return {**self._full_model_info, "evaluations": self.evaluations}

    @cached_property
    def _full_model_info(self) -> dict[str, Any]:
        return super().full_model_info()

    @cached_property
    def _exact(self) -> bool:
        """Whether costs do not depend on the other masks of a call: sums of integers do not, sums of times may."""
        return all((cost.savings == np.round(cost.savings)).all() for cost in self.reported.values())

    @cached_property
    def _known(self) -> tuple[np.ndarray, Info]:
        """Rewards and `info` of each mask of the table, by row; they do not count as evaluations."""
        before = self.get_state()
        known = super().score(self.table.masks)
        self.set_state(before)
        return known


class ExampleScorer(TableScorer):
    """Scores masks by looking up single examples: on any batch of them, as `EngineScorer` does with the model."""

    scores_examples = True
    _exact = False

    def __init__(self, table: SubnetTable, reward_examples: int | None, reward_batches: str, **others: Any) -> None:
        if table.examples is None:
            raise ValueError(
                "`reward_examples` and `reward_batches` are not supported: this table holds means over all examples. Leave "
                f"them out, make a table with `{format_command('agents table', '... each=True')}`, or use "
                f"{table.meta.env_id}."
            )
        super().__init__(table, **others)
        if self.objective.reward.needs_divergences:
            name = self.objective.reward.name
            raise ValueError(f"`reward` is not supported: {name} needs divergences of each example. Give another.")
        self._each = table.examples[self.split]
        total = len(self._each.keys)
        self.draw_batches(reward_batches, total if reward_examples is None else reward_examples, total)

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        return self._on(self.next_examples(rng), self.table.rows(masks))

    def score_examples(self, masks: np.ndarray, start: int, stop: int) -> Scores:
        return self._each.each(np.arange(start, stop), self.table.rows(masks))

    def measure_fixed(self, masks: np.ndarray) -> Scores:
        return self._on(np.arange(self.batch_size), self.table.rows(masks))

    def _on(self, places: np.ndarray, rows: np.ndarray) -> Scores:
        found = self._each.means(places, rows)
        scores: dict[str, Any] = {name: np.asarray(getattr(found, name), np.float64) for name in SCORES}
        return Scores(**scores)


class TabularEnv(ScoredEnv, gymnasium.Env[Any, Any]):
    """`SkipEnv` with scores from a table instead of the model, for research on agents.

    ## Description
    Actions, observations, rewards and `info` are those of `das_gym.SkipEnv` with `reward_batches="fixed"` and all reward
    examples of the table. A table with the scores of each example (`python -m agents table with each=True`) allows any
    batches of them. The optimum is known: `env.get_wrapper_attr("table")` is the `SubnetTable`, which returns the best mask,
    ranks and regrets.

    ## Action Space, Observation Space, Rewards, Episode End, Information
    As `SkipEnv`'s. The layer statistics are those of the table's reward examples; rewards agree to float32 rounding.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` looks n masks up at once (`python -m benchmarks.tabular` measures the speed).

    Args:
        skip_num, macs_saved, action, reward, macs_price, statistics, render_mode, costs: As for `SkipEnv`; with
            `statistics=None`, those of the defaults that the table holds.
        split: Split of the scores: `reward`, or `test` to see what a search would find on the test split.
        group: Group of examples to score on, such as a question type, of a table with groups; None = all examples.
        reward_examples, reward_batches: As for `SkipEnv`, for a table with the scores of each example, which are the model's
            rounded to float16. The statistics are those of all its reward examples.
        table: Path of a table, see `python -m agents table`; None is the bundled one.
        model: Model of the bundled table; the id sets it.
        task: Task of the bundled table; the id sets it.
        budget: `latency_saved`, `parameters_saved` or `memory_saved`, as for `SkipEnv`. A table that holds no latency needs
            `costs` for it; the bundled ones hold the processor time of one thread.

    Example:
        >>> import gymnasium
        >>> import das_gym
        >>> env = gymnasium.make("DAS-METER-VQA-Tabular-v0", skip_num=4)
        >>> observation, info = env.reset(seed=0)
        >>> best = env.get_wrapper_attr("table").best(skip_num=4)
    """

    def __init__(
        self,
        skip_num: int | str | None = "auto",
        macs_saved: float | None = None,
        action: str = "mask",
        reward: str | None = None,
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
        costs: Mapping[str, Any] | str | None = None,
        **budget: Any,
    ) -> None:
        check_arguments(
            [name for name in budget if name not in SAVED], [*inspect.signature(TabularEnv).parameters, *BUDGET_SETTINGS]
        )
        path = table_path(model, task, table)
        every_group = load_table(path)
        own = find_environment(model, task).id
        if every_group.meta.env_id != own:
            raise ValueError(f"`table` is of another environment: {path} is of {every_group.meta.env_id}, expected {own}.")
        self.table = every_group if group is None else every_group.group_table(group)
        settings: dict[str, Any] = {
            "budget": {"skip_num": skip_num, "macs_saved": macs_saved, **budget},
            "reward": reward or default_reward(self.table.meta.env_id),
            "macs_price": macs_price,
            "statistics": statistics,
            "split": split,
            "costs": costs,
        }
        if reward_examples is None and reward_batches == "fixed":
            scorer = TableScorer(self.table, **settings)
        else:
            scorer = ExampleScorer(self.table, reward_examples, reward_batches, **settings)
        super().__init__(scorer, action, render_mode)


class TabularVectorEnv(ScoredVectorEnv, VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `TabularEnv`, see `ScoredVectorEnv`: a step looks all their masks up at once."""

    env_class = TabularEnv


def bundled_table(model: str, task: str) -> Path:
    """Return the path of the bundled table of a model and task; ValueError if there is none."""
    check_names([model], MODELS, "model", own=True)
    entry = find_environment(model, task)
    if entry.table is None:
        command = format_command("agents table", entry.short, "out=FILE")
        raise ValueError(
            f"no table of {model} on {task} is bundled. `{command}` makes one. Pass it as table=FILE; a search takes it as "
            "env_kwargs.table=FILE."
        )
    return entry.table


def table_path(model: str, task: str, table: str | None = None) -> Path:
    """Return the path of a given table, or of the bundled one; FileNotFoundError or ValueError if there is none."""
    if table is None:
        return bundled_table(model, task)
    path = absolute_path(table)
    if not path.is_file():
        command = format_command("agents table", find_environment(model, task).short, shlex.quote(f"out={path}"))
        raise FileNotFoundError(f"no table at {path}; `{command}` makes one")
    return path


def load_table(path: Path) -> SubnetTable:
    """Return the table in a file, from a process-wide cache: do not change its arrays."""
    return _load_table(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=16)
def _load_table(path: Path, stamp: int) -> SubnetTable:
    del stamp  # part of the cache's key: a table that was made again is loaded again
    return SubnetTable.load(path)
