"""The settings of a search with an algorithm of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.sb3.algorithms import ALGORITHMS, choose_action, find_algorithm, with_defaults
from das_gym.agents.searching.loop import SearchConfig

from das_gym.config import check_names
from das_gym.files import absolute

SB3_DEFAULTS: dict[str, Any] = {"masks_per_turn": 4, "evaluations": 1000, "save_every": 25}
"""Where a search with an algorithm of SB3 differs from other searches unless it is told otherwise."""

BY_SB3S_NAMES = {"agent": "algorithm", "agent_kwargs": "hyperparameters", "masks_per_turn": "n_envs"}
"""Fields of `SB3Config` that `train_sb3` takes under the names that users of SB3 know."""


@dataclass(frozen=True)
class SB3Config(SearchConfig):
    """What to search, with which algorithm, for how long.

    The fields of `SearchConfig`, where `agent` is a key of `das_gym.agents.sb3.algorithms.ALGORITHMS` or "module:class",
    `agent_kwargs` are its hyperparameters (so `train_sb3` and the command call them), and `masks_per_turn` environments
    (`n_envs`) run side by side: what one engine call scores. `skip_num=None` without a share to save allows any number
    of layers.

    Attributes:
        action: `mask`, `sequence` or `scores`; None = the first that the algorithm takes.
        start_from: An `agent.zip`, or the run folder that holds one, to train further; None = begin anew.
    """

    agent: str = "ppo"
    masks_per_turn: int = SB3_DEFAULTS["masks_per_turn"]
    evaluations: int = SB3_DEFAULTS["evaluations"]
    save_every: int = SB3_DEFAULTS["save_every"]
    action: str | None = None
    start_from: str | None = None

    def check_algorithm(self) -> None:
        """Refuse an algorithm that is not there, an action space it does not take, a hyperparameter it does not have.

        Raises:
            ValueError: names what there is.
        """
        cls, known = find_algorithm(self.agent)
        choose_action(known, self.action)
        with_defaults(cls, known, self.agent_kwargs, self.masks_per_turn)

    def _check_agent(self) -> None:
        if "action" in self.env_kwargs:
            raise ValueError("env_kwargs must not hold action; use the setting action of the search")

    def _check_budget(self) -> None:
        if set(self.budget.values()) != {None}:
            super()._check_budget()


def with_action(env_kwargs: Mapping[str, Any], action: str) -> dict[str, Any]:
    """What makes the environment in an action space; whole masks are what every environment takes."""
    return dict(env_kwargs) if action == "mask" else {**env_kwargs, "action": action}


def sb3_config(fields: Mapping[str, Any], action: str | None, start_from: str | None) -> SB3Config:
    """Return the settings of a search with an algorithm, checked.

    Args:
        fields: Those of `SearchConfig`.
        action: As in `SB3Config`.
        start_from: As in `SB3Config`.
    """
    start_from = None if start_from is None else str(absolute(start_from))
    config = SB3Config(**fields, action=action, start_from=start_from)
    config.check_algorithm()
    return config


def check_agent_name(name: str) -> None:
    """Refuse a name that means neither an agent nor an algorithm; "module:class" may mean anything.

    Raises:
        ValueError: names the nearest.
    """
    if ":" not in name:
        check_names([name], (*AGENTS, *ALGORITHMS), "agent", own=True)
