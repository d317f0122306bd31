"""(1 + lambda) evolution with a mutation that keeps the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import check_number
from das_gym.agents.ask_tell.best_seen import BestSeen

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Evolution(BestSeen):
    """(1 + lambda) evolution (EvoPress, arXiv 2410.14649).

    The best of the first `offspring` random masks is the parent. Each generation scores `offspring` mutants of it, and
    the best of mutants and parent is the next parent. A mutant keeps s of the parent's skipped layers and skips s
    others, s the smaller of two draws from 1..`max_swaps`; by cost, as many others as the budget takes. No mask comes
    twice. The answer is the best mask told.

    With `stages` of several shares, such as (0.1, 0.3, 1.0), a generation is scored on a tenth of the reward examples
    first, the better half of it on three tenths, and the better half of those on all. Only rewards on all examples
    count for parent and answer. An environment that answers from a table has no examples to stage.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        offspring: lambda, at least 1.
        max_swaps: Largest number of swaps, at least 1.
        stages: Rising shares of the reward examples, the last 1.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        offspring: int = 9,
        max_swaps: int = 3,
        stages: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(space, seed)
        check_number("offspring", offspring, minimum=1, whole=True)
        check_number("max_swaps", max_swaps, minimum=1, whole=True)
        for share in stages if isinstance(stages, (list, tuple)) else ():
            check_number("stages", share, above=0, maximum=1)
        if not isinstance(stages, (list, tuple)) or not stages or stages[-1] != 1 or sorted(set(stages)) != list(stages):
            raise ValueError(f"stages={stages!r} is not allowed; give rising shares that end with 1, such as [0.1, 1]")
        self.offspring, self.max_swaps = offspring, max_swaps
        self.stages = tuple(float(share) for share in stages)
        self.parent: Masks | None = None
        self._stage = 0
        self._scored: dict[bytes, float] = {}  # of the generation, in this stage
        self._waiting: list[bytes] = []  # of the generation, for this stage
        self._rejected: dict[bytes, None] = {}

    @property
    def generation(self) -> int:
        """How many masks the present generation has."""
        return self.offspring

    def surviving(self, scored: int) -> int:
        """How many of so many masks go on to the next stage."""
        return (scored + 1) // 2

    @property
    def examples_share(self) -> float:  # type: ignore[override]
        """That of the present stage."""
        return self.stages[self._stage]

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks, no more than the generation still wants in this stage."""
        if self._stage == 0:
            seen = {**self.reported, **self._rejected, **self._scored}
            fresh = self.space.distinct(min(n, self.generation - len(self._scored)), self._draw, self.rng, seen)
            if len(fresh) or not self._scored or len(self.stages) == 1:
                return fresh
            self._end_stage()  # no more masks exist: the generation is a small one
        return self._as_masks(self._waiting[:n])

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the rewards; the better half goes on to the next stage, the best mask becomes the parent."""
        masks, rewards = self._check_told(masks, rewards)
        self._scored.update(zip((mask.tobytes() for mask in masks), rewards.tolist(), strict=True))
        self._waiting = [key for key in self._waiting if key not in self._scored]
        if self._stage == len(self.stages) - 1:
            super().tell(masks, rewards)
        if not self._waiting and (self._stage > 0 or len(self._scored) >= self.generation):
            self._end_stage()

    def best(self) -> Masks:
        """As `BestSeen.best`; before any mask was scored on all examples, the best of the stage."""
        keys = self._waiting or sorted(self._scored, key=lambda key: -self._scored[key])
        return super().best() if self.reported or not keys else self._as_masks(keys[:1])[0].copy()

    def state_dict(self) -> dict[str, Any]:
        """As `BestSeen.state_dict`, with the parent and where its generation is."""
        return {
            **super().state_dict(),
            "parent": None if self.parent is None else np.flatnonzero(self.parent).tolist(),
            "stage": self._stage,
            "scored": [[list(key), reward] for key, reward in self._scored.items()],
            "waiting": [list(key) for key in self._waiting],
            "rejected": [list(key) for key in self._rejected],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        parent = convert("parent", state["parent"], list[int] | None)
        self.parent = None if parent is None else np.isin(np.arange(self.n_layers), parent)
        self._stage = convert("stage", state["stage"], int)
        if not 0 <= self._stage < len(self.stages):
            raise ValueError(f"stage={self._stage} is none of {len(self.stages)}")
        self._scored = {self._key(bits): float(read_array("a reward", reward, ())) for bits, reward in state["scored"]}
        self._waiting = [self._key(bits) for bits in state["waiting"]]
        self._rejected = dict.fromkeys(self._key(bits) for bits in state["rejected"])

    def _end_stage(self) -> None:
        if self._stage == len(self.stages) - 1:
            self.parent, self._stage = self.best(), 0
        else:
            ranked = sorted(self._scored, key=lambda key: -self._scored[key])
            kept = self.surviving(len(ranked))
            self._rejected |= dict.fromkeys(ranked[kept:])
            self._waiting, self._stage = ranked[:kept], self._stage + 1
        self._scored = {}

    def _as_masks(self, keys: Sequence[bytes]) -> Masks:
        return np.frombuffer(b"".join(keys), dtype=bool).reshape(len(keys), self.n_layers)

    def _draw(self) -> Masks:
        if self.parent is None:
            return self.space.sample(self.rng)
        strength = int(self.rng.integers(1, self.max_swaps, size=2, endpoint=True).min())
        return self.space.mutate(self.parent, strength, self.rng)
