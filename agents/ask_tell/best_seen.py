"""What most searches have in common: they remember every mask they were told, and answer with the best one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class BestSeen(Agent):
    """Remembers masks and rewards; the answer is the allowed mask with the highest reward, of equal ones the first told.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.

    Attributes:
        told: `mask.tobytes()` of every mask told so far to its reward, the latest where it was told again.
    """

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)
        self.reported: dict[bytes, float] = {}

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the rewards."""
        masks, rewards = self._check_told(masks, rewards)
        self.reported.update(zip((mask.tobytes() for mask in masks), rewards.tolist(), strict=True))

    def reported_masks(self) -> Masks:
        """(m, n_layers) masks told so far, in the order in which they were first told."""
        return np.frombuffer(b"".join(self.reported), dtype=bool).reshape(len(self.reported), self.n_layers)

    def best(self) -> Masks:
        """The best allowed mask told so far.

        Raises:
            ValueError: none was told yet.
        """
        masks = self.reported_masks()
        rewards = np.where(self.space.contains(masks), list(self.reported.values()), -np.inf)
        if not np.isfinite(rewards).any():
            raise ValueError("no mask that keeps the budget was scored yet; call tell(masks, rewards) before best()")
        return masks[rewards.argmax()].copy()

    def state_dict(self) -> dict[str, Any]:
        """As `Agent.state_dict`, with the masks told, each a text of 0 and 1, and their rewards."""
        told = {"".join("01"[bit] for bit in mask): reward for mask, reward in self.reported.items()}
        return {**super().state_dict(), "told": told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        told = convert("told", state["told"], dict[str, float])
        self.reported = {self._key([int(bit) for bit in bits]): reward for bits, reward in told.items()}
        read_array("told", list(told.values()), (len(told),))

    def _key(self, bits: Any) -> bytes:
        """What a mask is remembered by, from (n_layers,) plain values."""
        return read_array("a mask", bits, (self.n_layers,), bool).tobytes()


class OneMask(BestSeen):
    """Asks for its answer alone and is done: what needs no search. A subclass says `best()`."""

    draws: ClassVar[bool] = False

    def ask(self, n: int) -> Masks:
        """(1, n_layers) the answer; (0, n_layers) once it was told."""
        del n
        return np.zeros((0, self.n_layers), dtype=bool) if self.reported else self.best()[None]
