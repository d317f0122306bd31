"""Evolutionary searches: (1 + lambda) evolution, and EvoPress with its settings for depth pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, check_positive, masks_of_keys

from das_gym.commands.settings import convert
from das_gym.files import read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Evolution(Agent):
    """(1 + lambda) evolution (EvoPress, arXiv 2410.14649).

    The best of the first `offspring` random masks is the parent. Each generation scores `offspring` mutants of it, and
    the best of mutants and parent is the next parent. A mutant keeps all but s of the parent's skipped layers and skips s
    others, s the smaller of two draws from 1..`max_swaps`; by cost, as many others as the budget takes. No mask comes
    twice.

    With `stages` of several fractions, such as (0.1, 0.3, 1.0), a generation is scored on a tenth of the reward examples
    first, the better half of it on three tenths, and the better half of those on all. Only rewards on all examples count
    for parent and answer. A table of mean scores has no examples to stage.

    Args:
        offspring: lambda, at least 1.
        max_swaps: Largest number of swaps, at least 1.
        stages: Rising fractions of the reward examples, the last 1.
    """

    races: ClassVar[bool] = True

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        offspring: int = 9,
        max_swaps: int = 3,
        stages: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(space, seed)
        check_positive("offspring", offspring, whole=True)
        check_positive("max_swaps", max_swaps, whole=True)
        are_fractions = isinstance(stages, (list, tuple)) and all(isinstance(s, (int, float)) and 0 < s <= 1 for s in stages)
        if not are_fractions or not stages or stages[-1] != 1 or sorted(set(stages)) != list(stages):
            raise ValueError(f"`stages` is not allowed: got {stages!r}, expected rising fractions that end with 1: [0.1, 1]")
        self.initial = self.offspring = offspring
        self.max_swaps = max_swaps
        self.survivors: int | None = None  # masks of a generation that enter the next stage; None = the better half
        self.stages = tuple(float(fraction) for fraction in stages)
        self.parent: Masks | None = None
        self._stage = 0
        self._scored: dict[bytes, float] = {}  # rewards of this generation in this stage
        self._waiting: list[bytes] = []  # masks of this generation that this stage has still to score
        self._rejected: dict[bytes, None] = {}  # masks that an earlier stage sorted out

    @property
    def generation_size(self) -> int:
        """Number of masks in the current generation."""
        return self.initial if self.parent is None else self.offspring

    @property
    def examples_share(self) -> float:  # type: ignore[override]
        """Fraction of the current stage."""
        return self.stages[self._stage]

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks, no more than the generation still needs in this stage."""
        if self._stage == 0:
            seen = {**self.rewards, **self._rejected, **self._scored}
            fresh = self.space.distinct(min(n, self.generation_size - len(self._scored)), self._draw, self.rng, seen)
            if len(fresh) or not self._scored or len(self.stages) == 1:
                return fresh
            self._end_stage()  # no more masks exist: the generation stays small
        return masks_of_keys(self._waiting[:n], self.n_layers)

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Store the rewards, and end the stage after its last mask."""
        masks, rewards = self.check_rewards(masks, rewards)
        self._scored.update(zip((mask.tobytes() for mask in masks), rewards.tolist(), strict=True))
        self._waiting = [key for key in self._waiting if key not in self._scored]
        if self._stage == len(self.stages) - 1:
            super().tell(masks, rewards)
        if not self._waiting and (self._stage > 0 or len(self._scored) >= self.generation_size):
            self._end_stage()

    def best(self) -> Masks:
        """Return the best mask; before any mask was scored on all examples, the best of the stage."""
        keys = self._waiting or sorted(self._scored, key=lambda key: -self._scored[key])
        return super().best() if self.rewards or not keys else masks_of_keys(keys[:1], self.n_layers)[0].copy()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "parent": None if self.parent is None else np.flatnonzero(self.parent).tolist(),
            "stage": self._stage,
            "scored": [[list(key), reward] for key, reward in self._scored.items()],
            "waiting": [list(key) for key in self._waiting],
            "rejected": [list(key) for key in self._rejected],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        parent = convert("parent", state["parent"], list[int] | None)
        self.parent = None if parent is None else np.isin(np.arange(self.n_layers), parent)
        self._stage = convert("stage", state["stage"], int)
        if not 0 <= self._stage < len(self.stages):
            raise ValueError(f"`stage` is out of range: got {self._stage}, expected 0..{len(self.stages) - 1}")
        self._scored = {self.key(bits): float(read_array("a reward", reward, ())) for bits, reward in state["scored"]}
        self._waiting = [self.key(bits) for bits in state["waiting"]]
        self._rejected = dict.fromkeys(self.key(bits) for bits in state["rejected"])

    def _end_stage(self) -> None:
        """Promote the better masks to the next stage; after the last stage, choose the next parent."""
        if self._stage == len(self.stages) - 1:
            self.parent = self.best()
            self._stage = 0
        else:
            ranked = sorted(self._scored, key=lambda key: -self._scored[key])
            kept = (len(ranked) + 1) // 2 if self.survivors is None else self.survivors
            self._rejected |= dict.fromkeys(ranked[kept:])
            self._waiting = ranked[:kept]
            self._stage += 1
        self._scored = {}

    def _draw(self) -> Masks:
        return self.space.sample(self.rng) if self.parent is None else self._mutate(self.parent)

    def _mutate(self, parent: Masks) -> Masks:
        return self.space.mutate(parent, self._draw_swaps(), self.rng)

    def _draw_swaps(self) -> int:
        return int(self.rng.integers(1, self.max_swaps, size=2, endpoint=True).min())


class EvoPress(Evolution):
    """EvoPress with its settings for depth pruning (arXiv 2410.14649).

    Of `initial` random masks the best is the parent. Every generation scores `offspring` mutants of it on a sixteenth of
    the reward examples and the best `survivors` of these on all; the best of them and the parent is the next parent. A
    mutation swaps s skipped layers for s kept ones of the same size (attention for attention and MLP for MLP, where they
    are separate units), s the smaller of two draws from 1..3, so that the number skipped of each size does not change; by
    cost, the budget may then ask for more layers, or for fewer. Ours: the first masks pass through the same stages, and no
    mask is scored twice at one fidelity.

    Args:
        statistics: Statistic name to (n_layers,) values; `parameters_share` identifies which layers have the same size.
        offspring: lambda, at least 1.
        initial: Number of random masks, at least 1.
        survivors: Masks of a generation that are scored on all examples, at least 1.
        stages: Rising fractions of the reward examples, the last 1.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        offspring: int = 32,
        initial: int = 64,
        survivors: int = 2,
        stages: Sequence[float] = (1 / 16, 1.0),
    ) -> None:
        super().__init__(space, seed, offspring, stages=stages)
        check_positive("initial", initial, whole=True)
        check_positive("survivors", survivors, whole=True)
        self.initial = initial
        self.survivors = survivors
        sizes = np.asarray((statistics or {}).get("parameters_share", np.zeros(self.n_layers)))
        self._sizes = np.unique(sizes, return_inverse=True)[1]

    def _mutate(self, parent: Masks) -> Masks:
        mask = parent.copy()
        for _ in range(self._draw_swaps()):
            groups = [np.flatnonzero(self._sizes == size) for size in range(self._sizes.max() + 1)]
            groups = [group for group in groups if 0 < mask[group].sum() < len(group)]
            if not groups:
                break
            group = groups[self.rng.integers(len(groups))]
            mask[[self.rng.choice(group[mask[group]]), self.rng.choice(group[~mask[group]])]] ^= True
        values = self.rng.random(self.n_layers)
        return self.space.top(values + np.where(mask, 2.0, 0.0))
