"""The settings of a search."""

from __future__ import annotations

import dataclasses
import json
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import gymnasium
from das_gym.agents.ask_tell.base import AGENTS, agent_class, check_agent_kwargs, check_agent_name
from das_gym.agents.sb3.algorithms import ALGORITHMS, is_algorithm
from das_gym.agents.searching.agent_setup import SEARCH_DEFAULTS
from das_gym.agents.searching.checkpoint import CHECKPOINT, saved_costs
from das_gym.agents.searching.record import Turn

from das_gym.config import choice
from das_gym.envs.actions import ACTION_MODES
from das_gym.problem.budget import check_budget
from das_gym.problem.mask_cost import BUDGET_SETTINGS, SAVED, BudgetSettings
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
        reserved = {**{name: name for name in BUDGET_SETTINGS}, "num_envs": "masks_per_turn", "action": "action"}
        for name in reserved.keys() & self.env_kwargs.keys():
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Use the setting `{reserved[name]}` of the search")
        for name in ("env_kwargs", "agent_kwargs"):
            try:  # a record that is not JSON could not be replayed
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise TypeError(f"`{name}` is not JSON ({error}). Use texts, numbers, lists and mappings") from error
        # PPO and others may search without a budget, with a price of MACs in the reward; ask/tell agents need one.
        has_budget = set(self.budget.values()) != {None}
        if has_budget or not is_algorithm(self.agent):
            check_budget(self.budget)
        if not is_algorithm(self.agent):
            self._check_agent(has_budget)

    def _check_agent(self, has_budget: bool) -> None:
        """Check the settings of an ask/tell agent. `check_search` checks those of an algorithm of Stable-Baselines3."""
        if not has_budget:
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


OnTurn = Callable[[Turn], Any]


def with_costs(config: SearchConfig, folder: Path | None = None) -> SearchConfig:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed: a search that continues from the checkpoint in `folder` has the costs measured then.
    """
    if folder is not None and (folder / CHECKPOINT).is_file():
        known = saved_costs(folder)
        costs = {} if known is None else {"costs": known}
    elif any(name in SAVED and name != "macs_saved" for name in config.budget):
        env = gymnasium.make_vec(config.env_id, num_envs=1, **config.mask_kwargs)
        costs = cast(Any, env.unwrapped).budget.known_costs
        env.close()
    else:
        costs = {}
    return dataclasses.replace(config, env_kwargs={**config.env_kwargs, **costs}) if costs else config
