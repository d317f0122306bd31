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
"""Defaults that differ from those of other searches."""

SB3_NAMES = {"agent": "algorithm", "agent_kwargs": "hyperparameters", "masks_per_turn": "n_envs"}
"""Fields of `SB3Config` that `train_sb3` takes under the names that users of SB3 know."""


@dataclass(frozen=True)
class SB3Config(SearchConfig):
    """Settings of a search with an algorithm of Stable-Baselines3.

    The fields are those of `SearchConfig`: `agent` is a key of `das_gym.agents.sb3.algorithms.ALGORITHMS` or "module:class",
    `agent_kwargs` are its hyperparameters, and `masks_per_turn` is the number of parallel environments (`n_envs`), whose
    masks are scored in one engine call. `skip_num=None` without a share to save allows any number of layers.

    Attributes:
        action: `mask`, `sequence` or `scores`; None = the algorithm's default.
        start_from: An `agent.zip`, or the run folder that holds one, to continue training; None = start from scratch.
    """

    agent: str = "ppo"
    masks_per_turn: int = SB3_DEFAULTS["masks_per_turn"]
    evaluations: int = SB3_DEFAULTS["evaluations"]
    save_every: int = SB3_DEFAULTS["save_every"]
    action: str | None = None
    start_from: str | None = None

    def _check_agent(self) -> None:
        if "action" in self.env_kwargs:
            raise ValueError("`env_kwargs` must not hold `action`. Use the setting `action` of the search")

    def _check_budget(self) -> None:
        if set(self.budget.values()) != {None}:
            super()._check_budget()


def with_action(env_kwargs: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Return the keyword arguments of the environment with an action space; `mask` is every environment's default."""
    return dict(env_kwargs) if action == "mask" else {**env_kwargs, "action": action}


def sb3_config(fields: Mapping[str, Any], action: str | None, start_from: str | None) -> SB3Config:
    """Return the checked settings of a search from those of `python -m agents`.

    Args:
        fields: Those of `SearchConfig`.
        action: As in `SB3Config`.
        start_from: As in `SB3Config`.

    Raises:
        ValueError: a hyperparameter that the algorithm does not have.
    """
    start_from = None if start_from is None else str(absolute(start_from))
    config = SB3Config(**fields, action=action, start_from=start_from)
    cls, known = find_algorithm(config.agent)
    choose_action(known, config.action)
    with_defaults(cls, known, config.agent_kwargs, config.masks_per_turn)
    return config


def check_agent_name(name: str) -> None:
    """Raise a ValueError for a name that is neither an agent nor an algorithm; "module:class" may be anything."""
    if ":" not in name:
        check_names([name], (*AGENTS, *ALGORITHMS), "agent", own=True)
