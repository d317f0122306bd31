"""What stands between an algorithm of SB3 and the environments: it keeps what was scored, and stops at the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.agents.searching.record import SCORES, Turn, plain_numbers
from gymnasium.vector import VectorEnv, VectorWrapper

from das_gym.files import damage_named

STEPS_PER_LAYER = 4
"""A search ends after this many steps a layer and mask, even if masks are left to score."""


class BudgetSpentError(Exception):
    """No evaluation is left: raised where the next step would begin."""


class Recorder(VectorWrapper):
    """Keeps every mask that was scored, as the turns of a search, and ends the search when its budget is spent.

    A turn is one step: the masks that it scored, in one engine call. In the last one, masks beyond the budget are left out.
    Masks off the budget of the environment are not scored and count for nothing.

    Args:
        env: Environments of das_gym's kind; their action is a mask, or they tell `last_masks`.
        evaluations: How many masks may be scored.
        turns: What was scored before, if a search goes on.
        state: What the environments' `get_state()` told then: the first reset begins there, with new episodes.
        source: The file that turns and state were read from.
        on_turn: Called after each turn with it.

    Attributes:
        turns: All turns.
        evaluations: How many masks they hold.
        steps: Steps taken, all environments together.

    Raises:
        ValueError: turns of masks of another width, or, at the first reset, no such state; names `source`.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        evaluations: int,
        turns: Sequence[Turn] = (),
        state: Mapping[str, Any] | None = None,
        source: Path = Path(),
        on_turn: Callable[[Turn], Any] | None = None,
    ) -> None:
        super().__init__(env)
        self.budget = evaluations
        self.turns = list(turns)
        self.evaluations = sum(len(turn.masks) for turn in turns)
        self.steps = 0
        self.threads = torch.get_num_threads()
        self.state, self.source = state, source
        self.on_turn = on_turn
        base: Any = env.unwrapped
        self.n_layers = len(base.layer_names)
        self.max_steps = evaluations * STEPS_PER_LAYER * self.n_layers
        if any(len(mask) != self.n_layers for turn in turns for mask in turn.masks):
            raise ValueError(f"{source} is damaged: its masks are not of {self.n_layers} layers; begin a new search")

    @property
    def starved(self) -> bool:
        """Whether the search ends for want of masks within the environment's budget: nearly none of many steps gave one."""
        return self.steps >= self.max_steps and self.evaluations < self.budget

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environments'; the first one goes on with the examples that come next, if a search goes on."""
        observations, info = self.env.reset(seed=seed, options=options)
        if self.state is not None:
            base: Any = self.env.unwrapped
            with damage_named(self.source, "begin a new search"):
                base.set_state({**self.state, "episode": base.get_state().get("episode")})
            self.state = None
        return observations, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environments'.

        Raises:
            BudgetSpentError: the budget is spent, or so many steps gave so few masks that it never would be.
            ValueError: a reward is not a number.
        """
        if self.evaluations >= self.budget or self.steps >= self.max_steps:
            raise BudgetSpentError
        with torch_threads(self.threads):
            observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.steps += self.num_envs
        ended = terminated | truncated
        if ended.any():
            self._keep(actions, rewards, ended, info.get("final_info", info))
        return observations, rewards, terminated, truncated, info

    def _keep(self, actions: Any, rewards: np.ndarray, ended: np.ndarray, info: dict[str, Any]) -> None:
        masks = getattr(self.env.unwrapped, "last_masks", None)
        masks = np.asarray(actions, dtype=bool) if masks is None else masks
        broken = ended & ~np.isfinite(rewards)
        if broken.any():
            skipped = np.flatnonzero(masks[broken][0]).tolist()
            raise ValueError(f"the reward of the mask that skips layers {skipped} is {rewards[broken][0]}, not a number")
        rows = np.flatnonzero(ended & info["feasible"])[: self.budget - self.evaluations]
        if not len(rows):
            return
        scores: dict[str, Any] = {name: plain_numbers(info[name][rows]) for name in SCORES}
        turn = Turn(
            masks=masks[rows].astype(int).tolist(),
            rewards=rewards[rows].tolist(),
            skip_probabilities=None,
            preferences=None,
            **scores,
        )
        self.turns.append(turn)
        self.evaluations += len(rows)
        if self.on_turn is not None:
            self.on_turn(turn)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads within the block.

    SB3's networks are too small to be shared by cores: one thread is several times faster for them, and only the engine
    gets all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
