"""The settings of a search."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import gymnasium
from das_gym.agents.ask_tell.base import AGENTS, agent_class, check_agent_kwargs, check_agent_name
from das_gym.agents.sb3.algorithms import ALGORITHMS, SB3_DEFAULTS, is_algorithm

from das_gym.commands.settings import PositiveInt, Seed, choice, nested
from das_gym.envs.actions import ACTION_MODES
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, BudgetSettings, check_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.rewards import REWARDS
from das_gym.registration import (
    DEFAULT_ENV,
    DEFAULT_MODEL,
    DEFAULT_TASK,
    ENVIRONMENTS,
    MODELS,
    TASKS,
    entry_of,
    find_environment,
    is_tabular,
)

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings for searches of a few hundred masks; the paper's rate of 1 is for hundreds of turns."""


@dataclass(frozen=True)
class SearchConfig(BudgetSettings):
    """Settings of a search: environment, model and data, agent, number of evaluations and budget.

    Attributes:
        env_id: Id of the environment to search; `DAS-METER-VQA-Tabular-v0` and the like read a table.
        problem: Model and data of the environment, whose id says the model and the task.
        agent: Search algorithm, or "module:class" of a custom one. `bayes` is ours, `bandit` is the paper's.
        evaluations: Number of masks that the agent may score, at least 1. The final answer and the layer statistics that it
            reads are scored in addition. `python -m agents with ppo`, or another name of an algorithm of Stable-Baselines3,
            also sets 1,000 evaluations and 4 masks per turn; `agent=ppo` does not.
        seed: Random seed of the agent and the environment, 0..2^32 - 1.
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3. For an algorithm
            of Stable-Baselines3, its number of parallel environments.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        reward: How a mask is rewarded. `python -m agents list` shows the formulas. None means the task's own.
        reward_examples: Number of examples that a mask is scored on. None means the task's own number: 500, or 64 for
            retrieval and text.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`: `macs_price`, `statistics`, ...
        racing: Whether a mask is scored on an eighth, a quarter and half of the reward examples first, and dropped when it
            is clearly worse than the best one so far (`das_gym.agents.searching.racing`). None means where the reward
            allows it, for agents that need only the best masks exactly. `evaluations` count masks on all examples.
        save_every: Turns between checkpoints, at least 1.
        action: Action space of an algorithm of Stable-Baselines3. None means the first that the algorithm supports.

    Example:
        >>> from das_gym.agents import SearchConfig, search
        >>> config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent="random", skip_num=4, evaluations=60)
        >>> sum(search(config).mask)
        4
    """

    group: ClassVar[str] = "Search"

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
        entry = entry_of(self.env_id)
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
        for name in {"id", "vectorization_mode", "vector_kwargs", "wrappers"} & self.env_kwargs.keys():  # of `make_vec`
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Leave it out")
        json.dumps([self.env_kwargs, self.agent_kwargs])  # a record that is not JSON could not be replayed
        check_budget(self.budget)
        if is_algorithm(self.agent):
            return  # `check_search` checks its settings; it may search without a budget, with a price of MACs in the reward
        if set(self.budget.values()) == {None}:
            raise ValueError(f"`skip_num` is None. Give it, or one of {', '.join(SAVED)}: agents need a budget")
        if self.action is not None:
            raise ValueError(f"agent {self.agent!r} has no setting `action`; it is for {', '.join(ALGORITHMS)}")
        check_agent_kwargs(self.agent, self.agent_kwargs)
        least = agent_class(self.agent).min_masks
        if self.masks_per_turn < least:
            given = f"got {self.masks_per_turn}, expected {least} or more"
            raise ValueError(f"`masks_per_turn` is too small for agent {self.agent!r}: {given}")

    @property
    def budget(self) -> dict[str, Any]:
        """See `BudgetSettings.budget`; by default, no more units are skipped than a table has masks of."""
        budget = super().budget
        if self.skip_num == "auto" and budget["skip_num"] is not None and is_tabular(self.env_id):
            env: Any = gymnasium.make(self.env_id, **self.all_env_kwargs)
            budget["skip_num"] = env.unwrapped.budget.skip_num
        return budget

    @property
    def mask_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment whose action is a whole mask: those that a record keeps."""
        rewarded = {name: getattr(self, name) for name in ("reward", "reward_examples") if getattr(self, name) is not None}
        return {**self.budget, **rewarded, **self.all_env_kwargs}

    @property
    def all_env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment besides budget and reward: those of the problem, and `env_kwargs`."""
        return {**self.problem.env_kwargs, **self.env_kwargs}


def add_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, by dotted names, with `env_id`, `problem.model` and `problem.task`: what is given says the others.

    An environment of another package has no model and no task.
    """
    if "env_id" not in values:
        model, task = values.get("problem.model", DEFAULT_MODEL), values.get("problem.task", DEFAULT_TASK)
        known = model in MODELS and task in TASKS  # `build` reports others
        return {**values, "env_id": find_environment(model, task).id} if known else dict(values)
    entry = entry_of(str(values["env_id"]))
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
