"""What a trained algorithm of Stable-Baselines3 leaves behind, and what it answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from das_gym.agents.sb3.algorithms import find_algorithm, reads_masks
from das_gym.agents.sb3.config import with_action

from das_gym.files import at_home, read_json

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

AGENT = "agent.zip"
DESCRIPTION = "sb3.json"


def load_sb3(
    folder: str | os.PathLike[str], device: str = "cpu", trust: bool = False
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """The trained algorithm of a run, ready to `predict`, and what `sb3.json` says of it.

    Args:
        folder: The run's folder.
        device: Where the algorithm goes.
        trust: Whether `agent.zip` may run code: SB3's own `load` unpickles what it holds. Training from it does not.

    Raises:
        FileNotFoundError: no algorithm of SB3 was trained there.
        ValueError: `trust` is False, or `sb3.json` is damaged.
    """
    if not (Path(folder) / DESCRIPTION).is_file():
        raise FileNotFoundError(f"no {DESCRIPTION} in {folder}: no algorithm of SB3 was trained there")
    if not trust:
        raise ValueError(
            f"loading {Path(folder) / AGENT} unpickles it, which can run any code. Pass `trust=True` to confirm"
        )
    description = read_json(Path(folder) / DESCRIPTION)
    name = description.get("class") if isinstance(description, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{Path(folder) / DESCRIPTION} does not name the agent's class; train it again")
    cls, _ = find_algorithm(name)
    return cls.load(agent_file(folder), device=device), description


def agent_file(source: str | os.PathLike[str]) -> Path:
    """The `agent.zip` that is meant by its path or its folder's.

    Raises:
        FileNotFoundError: there is none.
    """
    path = at_home(source)
    path = path / AGENT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no agent at {path}; give the {AGENT} of an earlier run, or its folder")
    return path


def policy_mask(model: BaseAlgorithm, env_id: str, action: str, seed: int = 0, **env_kwargs: Any) -> np.ndarray:
    """(n_layers,) bool: the mask that a policy chooses when it does not explore.

    A policy that can be told which actions have an effect is told.

    Args:
        model: Trained in that action space.
        env_id: Id of an environment.
        action: Its action space.
        seed: Of its reset.
        env_kwargs: Its settings.
    """
    env = gymnasium.make_vec(env_id, num_envs=1, **with_action(env_kwargs, action))
    base: Any = env.unwrapped
    told = reads_masks(type(model))
    state, start = None, np.ones(1, dtype=bool)
    observation, _ = env.reset(seed=seed)
    try:
        while True:
            masks = {"action_masks": base.action_masks()} if told else {}
            chosen, state = model.predict(observation, state=state, episode_start=start, deterministic=True, **masks)
            observation, _, terminated, truncated, _ = env.step(chosen)
            start = terminated | truncated
            if start[0]:
                last = getattr(base, "last_masks", None)
                return np.asarray(chosen if last is None else last, dtype=bool)[0]
    finally:
        env.close()
