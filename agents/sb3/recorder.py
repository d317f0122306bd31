"""A vector wrapper that records the masks that an algorithm of SB3 scores, and stops at the budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.record import Checkpoint, OnTurn, Turn
from das_gym.agents.searching.scorer import SCORES
from gymnasium.vector import VectorEnv, VectorWrapper

from das_gym.envs.vector_env import ScoredVectorEnv

STEPS_PER_LAYER = 4
"""A search ends after this many steps per layer and mask, even if masks are left to score."""


class BudgetSpentError(Exception):
    """Raised in place of the next step when no evaluation is left."""


class Recorder(VectorWrapper):
    """Record every scored mask as a turn of the search, and end the search when its budget is spent.

    A turn is one step: the masks that it scored, in one engine call. Masks beyond the evaluations of the search are left
    out. Masks outside the environment's budget are not scored and do not count. `env` is a `ScoredVectorEnv`, wrapped or
    not. A checkpoint is written to `folder` every `save_every` turns; it holds `saved_turns`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], config: SearchConfig, folder: Path | None = None, on_turn: OnTurn | None = None
    ) -> None:
        super().__init__(env)
        self.config = config
        self.folder = folder
        self.on_turn = on_turn
        self.turns: list[Turn] = []
        self.saved_turns = 0
        self.evaluations = self.steps = 0
        self._threads = torch.get_num_threads()  # before `train_sb3` reduces them
        self._base = cast(ScoredVectorEnv, env.unwrapped)
        self.max_steps = config.evaluations * STEPS_PER_LAYER * len(self._base.layer_names)

    @property
    def starved(self) -> bool:
        """Whether the search ended early because nearly none of its masks was within the environment's budget."""
        return self.steps >= self.max_steps and self.evaluations < self.config.evaluations

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments, or raise BudgetSpentError."""
        if self.evaluations >= self.config.evaluations or self.steps >= self.max_steps:
            raise BudgetSpentError
        with torch_threads(self._threads):
            observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.steps += self.num_envs
        ended = terminated | truncated
        if ended.any():
            self._record(rewards, ended, info.get("final_info", info))
        return observations, rewards, terminated, truncated, info

    def _record(self, rewards: np.ndarray, ended: np.ndarray, info: dict[str, Any]) -> None:
        masks = cast(np.ndarray, self._base.last_masks)
        broken = np.flatnonzero(ended & ~np.isfinite(rewards))
        if len(broken):
            skipped = np.flatnonzero(masks[broken[0]]).tolist()
            raise ValueError(f"the reward of the mask that skips layers {skipped} is not finite: got {rewards[broken[0]]}")
        # A step may score more masks than are left: the surplus is not recorded, as if it had not been scored.
        rows = np.flatnonzero(ended & info["feasible"])[: self.config.evaluations - self.evaluations]
        if not len(rows):
            return
        turn = Turn.of(masks[rows], rewards[rows], {name: info[name][rows] for name in SCORES})
        self.turns.append(turn)
        self.evaluations += len(rows)
        if self.folder is not None and len(self.turns) - self.saved_turns >= self.config.save_every:
            self.saved_turns = len(self.turns)
            Checkpoint(None, {}, tuple(self.turns)).save(self.folder, self.config)
        if self.on_turn is not None:
            self.on_turn(turn)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads to `count` within the block.

    SB3's networks are too small to be split over cores: they are several times faster with one thread. Only the engine uses
    all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
