"""A search with an algorithm of Stable-Baselines3 as a run of `python -m agents`.

    python -m agents with meter_vqa ppo                              PPO, 4 of METER's layers, 1,000 masks
    python -m agents with meter_vqa_table maskable_ppo masks_per_turn=8      on the table, eight environments side by side
    python -m agents with sac macs_saved=0.12 agent_kwargs.learning_rate=3e-4
    python -m agents with agent=sb3_contrib:CrossQ                   any class of SB3's kind
    python -m agents with ppo start_from=runs/3                      train further what run 3 kept
    python -m agents with resume=4                                   continue run 4, which was stopped: agents/sb3/train.py

SB3's metrics go to Sacred (`metrics.json`), to standard output and to TensorBoard (`tensorboard --logdir runs`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from das_gym.agents.sb3.config import SB3Config
from das_gym.agents.sb3.policy import AGENT
from das_gym.agents.sb3.train import train_sb3
from das_gym.agents.searching.record import SearchResult, Turn
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter

from das_gym.experiment import Run


class SacredWriter(KVWriter):
    """Sends SB3's metrics to a Sacred run, each under SB3's name: `train/loss`, `rollout/ep_rew_mean`, ...

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log every finite number."""
        for name, value in key_values.items():
            if isinstance(value, Real) and math.isfinite(value) and "sacred" not in (key_excluded.get(name) or ()):
                self.run.log_scalar(name, float(value), step)

    def close(self) -> None:
        """Close nothing: the run is still active."""


def search_with_sb3(
    config: SB3Config, run: Run, folder: Path | None, on_turn: Callable[[Turn, tuple[str, ...]], Any], resume: bool
) -> SearchResult:
    """Train the algorithm; save the agent and the files of every search in the run folder.

    Args:
        config: What to search, with what.
        run: Where metrics and artifacts go.
        folder: The run's folder, or None.
        on_turn: Called after every step that scored masks.
        resume: Continue from the checkpoint in the folder.
    """
    settings = {
        name: value for name, value in vars(config).items() if name not in ("agent", "agent_kwargs", "masks_per_turn")
    }
    trained = train_sb3(
        config.agent,
        folder,
        hyperparameters=config.agent_kwargs,
        n_envs=config.masks_per_turn,
        on_turn=on_turn,
        writers=(HumanOutputFormat(sys.stdout), SacredWriter(run)),
        resume=resume,
        **settings,
    )
    result = trained.result
    print(f"{config.agent} in action space {trained.action!r}, {trained.model.num_timesteps} steps; its own answer:")
    print(f"  reward {trained.policy['reward']}, mask {trained.policy['mask']}")
    if trained.starved:
        print(
            f"  ended after {result.masks_asked} of {config.evaluations} evaluations: nearly none of its masks kept the "
            "budget; action=sequence and action=scores always keep it"
        )
    if folder is not None:
        run.add_artifact(folder / AGENT)
    return result
