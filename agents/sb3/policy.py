"""Load a trained algorithm of Stable-Baselines3, and ask its policy for a mask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from das_gym.agents.sb3.algorithms import find_algorithm, supports_action_masks, with_action

from das_gym.files import explain_damage, read_json

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

AGENT = "agent.zip"
DESCRIPTION = "sb3.json"


def load_sb3(
    folder: str | os.PathLike[str], device: str = "cpu", trust: bool = False
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """Load the trained algorithm of a run, ready to `predict`, and its description from `sb3.json`."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no {DESCRIPTION} in {folder}: no algorithm of SB3 was trained there")
    if not trust:
        raise ValueError(
            f"loading {Path(folder) / AGENT} unpickles it, which can run any code. Pass `trust=True` to confirm"
        )
    description = read_json(path)
    with explain_damage(path, "train the agent again"):
        cls, _ = find_algorithm(str(description["class"]))
    return cls.load(Path(folder) / AGENT, device=device), description


def policy_mask(model: BaseAlgorithm, env_id: str, action: str, seed: int = 0, **env_kwargs: Any) -> np.ndarray:
    """Return the mask that a policy chooses without exploration, (n_layers,) bool; `action` is what it was trained with."""
    env = gymnasium.make_vec(env_id, num_envs=1, **with_action(env_kwargs, action))
    base: Any = env.unwrapped
    state, start = None, np.ones(1, dtype=bool)
    observation, _ = env.reset(seed=seed)
    try:
        while True:
            masks = {"action_masks": base.action_masks()} if supports_action_masks(type(model)) else {}
            chosen, state = model.predict(observation, state=state, episode_start=start, deterministic=True, **masks)
            observation, _, terminated, truncated, _ = env.step(chosen)
            start = terminated | truncated
            if start[0]:
                last = getattr(base, "last_masks", None)  # of environments whose action is not a mask
                return np.asarray(chosen if last is None else last, dtype=bool)[0]
    finally:
        env.close()
