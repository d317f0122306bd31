"""The settings of a search."""

from __future__ import annotations

import json
from collections import ChainMap
from dataclasses import dataclass, field
from typing import Any, ClassVar

from das_gym.agents.ask_tell.base import AGENTS, agent_class, check_agent_kwargs, check_agent_name
from das_gym.agents.sb3.algorithms import ALGORITHMS, is_algorithm
from das_gym.agents.searching.setup import SEARCH_DEFAULTS

from das_gym.config import choice
from das_gym.envs.actions import ACTION_MODES
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, check_budget
from das_gym.problem.mask_cost import SAVED
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS


@dataclass(frozen=True)
class SearchConfig(BudgetSettings):
    """Settings of a search: environment, agent, number of evaluations and budget.

    Attributes:
        env_id: Id of the environment to search; `DAS-METER-VQA-Tabular-v0` and the like read a table.
        agent: Search algorithm, or "module:class" of a custom one. `bayes` is ours, `bandit` is the paper's.
        evaluations: Number of masks that the agent may score, at least 1. The final answer and the layer statistics that it
            reads are scored in addition. `python -m agents with ppo`, or another name of an algorithm of Stable-Baselines3,
            also sets 1,000 evaluations and 4 masks per turn; `agent=ppo` does not.
        seed: Random seed of the agent and the environment, 0..2^32 - 1.
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3. For an algorithm
            of Stable-Baselines3, its number of parallel environments.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`.
        save_every: Turns between checkpoints, at least 1.
        action: Action space of an algorithm of Stable-Baselines3. None means the first that the algorithm supports.

    Example:
        >>> from das_gym.agents import SearchConfig, search
        >>> config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent="random", skip_num=4, evaluations=60)
        >>> sum(search(config).mask)
        4
    """

    group: ClassVar[str] = "Search"

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS)
    agent: str = choice("bayes", ChainMap[str, Any](ALGORITHMS, AGENTS))
    evaluations: int = 240
    seed: int = 0
    masks_per_turn: int = 3
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    save_every: int = 1
    action: str | None = choice(None, ACTION_MODES)

    def __post_init__(self) -> None:
        check_agent_name(self.agent)
        for name, least in {"seed": 0, "masks_per_turn": 1, "evaluations": 1, "save_every": 1}.items():
            value = getattr(self, name)
            if not least <= value < 2**32:
                raise ValueError(f"`{name}` is out of range: got {value}, expected a whole number from {least} to 2^32 - 1")
        for name in {*BUDGET_SETTINGS, "num_envs", "action"} & self.env_kwargs.keys():
            own = "masks_per_turn" if name == "num_envs" else name
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Use the setting `{own}` of the search")
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
    def mask_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment whose action is a whole mask: those that a record keeps."""
        return {**self.budget, **self.env_kwargs}

    def agent_settings(self) -> dict[str, Any]:
        """Return the agent's hyperparameters with the defaults of a search."""
        return {**SEARCH_DEFAULTS.get(self.agent, {}), **self.agent_kwargs}
