"""Settings of a search, and of the commands of `python -m agents` that keep runs."""

import dataclasses
import json
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

import gymnasium
from das_gym.agents.ask_tell.base import AGENTS, agent_class, agent_hyperparameters, check_agent_name, check_hyperparameters
from das_gym.agents.ask_tell.front import STARTUP_MASKS
from das_gym.agents.sb3.algorithms import ALGORITHMS, SB3_DEFAULTS, find_algorithm, hyperparameters, is_algorithm

from das_gym.commands.runs import RunSettings
from das_gym.commands.settings import NonNegativeInt, PositiveInt, Range, Seed, choice, nested
from das_gym.envs.actions import ACTION_MODES
from das_gym.files import check_file
from das_gym.names import check_distinct
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, BudgetSettings, check_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.rewards import REWARDS
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS, MODELS, TASKS, env_entry, find_environment, is_tabular

COST_SETTINGS = {word: setting for setting, word in SAVED.items()}
"""The setting that asks for a share of each cost."""

FRONT_REWARD = {"reward": "neg_loss", "macs_price": 0.0}
"""Arguments of the environment whose front of loss and cost is searched."""

COMPARED_AGENTS = tuple(name for name in AGENTS if name != "exhaustive")
"""The agents that are compared by default: all of ours but the one that scores every mask."""

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings for searches of a few hundred masks; the paper's rate of 1 is for hundreds of turns."""


def search_hyperparameters(agent: str, agent_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of an agent in a search: those given, and `SEARCH_DEFAULTS`."""
    return {**SEARCH_DEFAULTS.get(agent, {}), **agent_kwargs}


@dataclass(frozen=True)
class SearchConfig(BudgetSettings, group="Search"):
    """Settings of a search: environment, model and data, agent, number of evaluations and budget.

    Attributes:
        env_id: Id of the environment to search. Ids with `Tabular`, such as `DAS-METER-VQA-Tabular-v0`, read a table.
        problem: Model and data of the environment; its id determines the model and the task.
        agent: Search algorithm, or "module:class" of a custom one. `bandit` is the algorithm of the DAS paper.
        evaluations: Number of masks that the agent may score, at least 1. The final answer and the layer statistics that it
            reads are scored in addition. `python -m agents with ppo`, or another name of an algorithm of Stable-Baselines3,
            also sets 1,000 evaluations and 4 masks per turn; `agent=ppo` does not.
        seed: Random seed of the agent and the environment, 0..2^32 - 1.
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3. For an algorithm
            of Stable-Baselines3, its number of parallel environments.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        reward: Name of the reward. `python -m agents list` shows the formulas. None means the task's own.
        reward_examples: Number of examples that a mask is scored on. None means the task's own number: 500, or 64 for
            retrieval and text.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`: `macs_price`, `statistics`, ...
        racing: Whether a mask is scored on an eighth, a quarter and half of the reward examples first, and dropped when it
            is clearly worse than the best one so far (`das_gym.agents.searching.racing`). None means True if the reward and
            the agent allow it. A mask that is scored on a fraction of the examples counts as that fraction of an evaluation.
        save_every: Turns between checkpoints, at least 1.
        action: Action space of an algorithm of Stable-Baselines3. None means the first that the algorithm supports.
    """

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS, others=True)
    agent: str = choice("bayes", ChainMap[str, Any](ALGORITHMS, AGENTS), others=True)
    evaluations: PositiveInt = 240
    seed: Seed = 0
    masks_per_turn: PositiveInt = 3
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    reward: str | None = choice(None, REWARDS, own=True)
    reward_examples: PositiveInt | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    racing: bool | None = None
    save_every: PositiveInt = 1
    action: str | None = choice(None, ACTION_MODES)
    problem: ProblemConfig = nested(ProblemConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_agent_name(self.agent)
        entry = env_entry(self.env_id)
        if entry is not None and (self.problem.model, self.problem.task) != (entry.model, entry.task):
            object.__setattr__(self, "problem", replace(self.problem, model=entry.model, task=entry.task))
        of_problem = self.problem.env_kwargs
        for name in of_problem.keys() & self.env_kwargs.keys():
            raise ValueError(
                f"{name}={of_problem[name]} is given, and env_kwargs.{name}={self.env_kwargs[name]} too; give one of them"
            )
        for name in {*BUDGET_SETTINGS, "num_envs", "action"} & self.env_kwargs.keys():
            own = "masks_per_turn" if name == "num_envs" else name
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Use the setting `{own}` of the search")
        if "id" in self.env_kwargs:  # of `gymnasium.make`
            raise ValueError("`env_kwargs` must not hold `id`. Leave it out")
        json.dumps([self.env_kwargs, self.agent_kwargs])  # a record that is not JSON could not be replayed
        check_budget(self.budget)
        if is_algorithm(self.agent):
            return  # `check_search` checks its settings; it may search without a budget, with a price of MACs in the reward
        if set(self.budget.values()) == {None}:
            raise ValueError(f"`skip_num` is None. Give it, or one of {', '.join(SAVED)}: agents need a budget")
        if self.action is not None:
            raise ValueError(f"agent {self.agent!r} has no setting `action`, unlike {', '.join(ALGORITHMS)}. Leave it out.")
        check_hyperparameters(self.agent, self.agent_kwargs)
        least = agent_class(self.agent).min_masks
        if self.masks_per_turn < least:
            given = f"got {self.masks_per_turn}, expected {least} or more"
            raise ValueError(f"`masks_per_turn` is too small for agent {self.agent!r}: {given}")

    @cached_property
    def budget(self) -> dict[str, Any]:
        """See `BudgetSettings.budget`; by default, no more units are skipped than a table has masks of."""
        budget = super().budget
        if self.skip_num == "auto" and budget["skip_num"] is not None and is_tabular(self.env_id):
            from das_gym.envs.tabular_env import load_table, table_path

            given = {**gymnasium.spec(self.env_id.rpartition(":")[2]).kwargs, **self.all_env_kwargs}
            table = load_table(table_path(given["model"], given["task"], given.get("table")))
            budget["skip_num"] = min(budget["skip_num"], table.most_skipped)
        return budget

    @property
    def mask_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment with `action="mask"`, which a search records."""
        rewarded = {name: getattr(self, name) for name in ("reward", "reward_examples") if getattr(self, name) is not None}
        return {**self.budget, **rewarded, **self.all_env_kwargs}

    @property
    def all_env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment without budget and reward: those of `problem`, and `env_kwargs`."""
        return {**self.problem.env_kwargs, **self.env_kwargs}


def add_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, by dotted names, with `env_id`, `problem.model` and `problem.task`, completed from those given."""
    if "env_id" not in values:
        model = values.get("problem.model", ProblemConfig.model)
        task = values.get("problem.task", ProblemConfig.task)
        known = model in MODELS and task in TASKS  # `build` reports others
        return {**values, "env_id": find_environment(model, task).id} if known else dict(values)
    if env_entry(f"{values['env_id']}-v0"):  # Gymnasium takes an id without its version too
        values = {**values, "env_id": f"{values['env_id']}-v0"}
    entry = env_entry(str(values["env_id"]))
    if entry is None:
        return dict(values)
    own = {"problem.model": entry.model, "problem.task": entry.task}
    for name in own.keys() & values.keys():
        if values[name] != own[name]:
            short = name.removeprefix("problem.")
            raise ValueError(f"`env_id` and `{short}` differ: got {values['env_id']} and {values[name]}. Leave one out.")
    return {**values, **own}


def agent_configs() -> dict[str, dict[str, Any]]:
    """Return the named configs of agents and of Stable-Baselines3's algorithms."""
    return {name: {"agent": name} for name in AGENTS} | {name: {"agent": name, **SB3_DEFAULTS} for name in ALGORITHMS}


@dataclass(frozen=True)
class SearchSettings(RunSettings, SearchConfig):
    """The settings of `python -m agents search`."""


def complete_search(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a search, by dotted names, with its environment and the agent's own in `agent_kwargs`.

    `learning_rate=10` is short for `agent_kwargs.learning_rate=10`, if the agent has it and the command no such setting.
    """
    completed = add_environment(values)
    agent = completed.get("agent", SearchConfig.agent)
    if not isinstance(agent, str) or not (agent in AGENTS or is_algorithm(agent)):
        return completed
    known = {each.name for each in dataclasses.fields(SearchSettings)}
    others = [name for name in completed if name.partition(".")[0] not in known]
    if not others:
        return completed
    accepted = hyperparameters(find_algorithm(agent)[0]) if is_algorithm(agent) else agent_hyperparameters(agent)
    own = {name for name in others if name in accepted}
    return {f"agent_kwargs.{name}" if name in own else name: value for name, value in completed.items()}


@dataclass(frozen=True)
class EnvironmentSettings(RunSettings, group="Search"):
    """Settings shared by the commands that run several searches on an environment.

    Attributes:
        env_id: Id of the environment. Ids with `Tabular`, such as `DAS-METER-VQA-Tabular-v0`, read a table.
        problem: Model and data of the environment.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.reward=metric`, `env_kwargs.table=FILE`.
        seed: Random seed of the search, or of the first of several.
    """

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS, others=True)
    problem: ProblemConfig = nested(ProblemConfig)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: Seed = 0


@dataclass(frozen=True)
class ParetoSettings(EnvironmentSettings, group="Search"):
    """The settings of `python -m agents pareto`. The budget of the environment is ignored.

    Attributes:
        cost: Cost that is traded off against the loss. Latency is measured on this machine.
        evaluations: Number of masks to score.
        masks_per_turn: Masks that are scored in one call.
        reward_examples: Number of examples that a mask is scored on. None means the task's own number.
    """

    cost: str = choice("MACs", tuple(SAVED.values()))
    evaluations: Annotated[int, Range(STARTUP_MASKS)] = 400
    masks_per_turn: PositiveInt = 8
    reward_examples: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in {"reward_batches": "fixed", **FRONT_REWARD}.items():
            given = self.env_kwargs.get(name, value)
            if given != value:
                raise ValueError(f"`{name}` is not supported for a front: got {given!r}. Leave it out.")

    @property
    def search(self) -> SearchConfig:
        """The search: by the loss."""
        budget: dict[str, Any] = {COST_SETTINGS[self.cost]: 0.0}
        return SearchConfig(
            self.env_id,
            "das_gym.agents.ask_tell.front:FrontSearch",
            problem=self.problem,
            evaluations=self.evaluations,
            seed=self.seed,
            masks_per_turn=self.masks_per_turn,
            reward_examples=self.reward_examples,
            env_kwargs={**self.env_kwargs, **FRONT_REWARD},
            **budget,
        )


@dataclass(frozen=True)
class TableSettings(RunSettings, group="Table"):
    """The settings of `python -m agents table`.

    Attributes:
        problem: Model and data.
        reward_examples: Number of examples of the reward split to score masks on. None uses all.
        test_examples: Number of examples of the test split to score masks on. None uses all.
        max_skipped: Most layers that a mask may skip. None scores every mask.
        each: Keep the score of each example, not only the mean. Any reward batch can then be looked up; the file grows to
            some MB.
        latency_batch: Examples per forward pass when the latency of each layer is measured on this machine. None measures
            no latency.
        out: File to write. None is `table.npz` in the run's folder.
    """

    problem: ProblemConfig = nested(ProblemConfig)
    reward_examples: PositiveInt | None = None
    test_examples: PositiveInt | None = None
    max_skipped: NonNegativeInt | None = None
    each: bool = False
    latency_batch: PositiveInt | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem.precision != "float32":
            raise ValueError(f"`precision` is not supported for tables: got {self.problem.precision}. Leave it out")
        check_file(self.out, may_exist=self.resume is not None)  # a stopped run may have written it


@dataclass(frozen=True)
class CompareSettings(EnvironmentSettings, BudgetSettings, group="Comparison"):
    """The settings of `python -m agents compare`.

    Attributes:
        agents: Agents to compare, or "module:class" of custom ones.
        seeds: Number of searches of each agent, with seeds from `seed` on.
        evaluations: Masks that a search may score.
        masks_per_turn: Masks that are scored between two answers.
        live: Whether to score masks with the model instead of the environment's table.
        agent_kwargs: Hyperparameters by agent, as in `agent_kwargs.bandit.learning_rate=5`.
    """

    agents: tuple[str, ...] = choice(COMPARED_AGENTS, ChainMap[str, Any](ALGORITHMS, AGENTS), others=True)
    seeds: PositiveInt = 50
    evaluations: PositiveInt = 120
    masks_per_turn: PositiveInt = 3
    live: bool = False
    agent_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.agents:
            raise ValueError(f"`agents` is empty: expected one or more of {', '.join(AGENTS)}")
        for name in self.agents:
            check_agent_name(name)
        for name in self.agent_kwargs.keys() - set(self.agents):
            raise ValueError(
                f"agent_kwargs.{name} is given, but {name!r} is not in `agents`: got {', '.join(self.agents)}. Leave it out."
            )
        check_distinct("agents", self.agents)
        for name in self.agents:
            self.search(name)  # checks its settings

    def search(self, agent: str) -> SearchConfig:
        """Return the search of an agent with the first seed: on the table, unless `live` is set or there is none."""
        entry = ENVIRONMENTS.get(self.env_id)
        return SearchConfig(
            self.env_id if self.live or entry is None else entry.tabular_id,
            agent,
            problem=self.problem,
            evaluations=self.evaluations,
            seed=self.seed,
            masks_per_turn=self.masks_per_turn,
            agent_kwargs=self.agent_kwargs.get(agent, {}),
            env_kwargs=self.env_kwargs,
            **{name: getattr(self, name) for name in BUDGET_SETTINGS},
        )
