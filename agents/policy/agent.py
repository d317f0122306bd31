"""Agents that ask a trained policy: for its mask alone, or for the masks that a search begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import MaskProcess, Process
from das_gym.agents.ask_tell.heuristics import Heuristic
from das_gym.agents.policy.choosing import choose
from das_gym.agents.policy.hinted import HINT_START, HINTED_GRID, Hint, HintedProcess, NeighbourCosts
from das_gym.agents.policy.network import UnitNetworks

from das_gym.files import absolute
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import MAX_UNITS, bundled_suite

POLICY_FILE = "policy.safetensors"

_DRAWS_A_MASK = 8
"""So many masks are drawn from the policy for each that is wanted; where they are all known, the rest is random."""


def bundled_policy() -> Path:
    """Where the policy lies that comes with das_gym."""
    return bundled_suite() / POLICY_FILE


@lru_cache(maxsize=4)
def _load(path: Path, stamp: int) -> UnitNetworks:
    del stamp  # part of the cache's key: a policy trained anew is loaded anew
    return UnitNetworks.load(path)


def load_policy(policy: str | None = None) -> UnitNetworks:
    """A policy, from a process-wide cache.

    Args:
        policy: Its file; None is the bundled one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no policy.
    """
    path = bundled_policy() if policy is None else absolute(policy)
    if not path.is_file():
        raise FileNotFoundError(f"no policy at {path}; `python -m agents policy with out={path}` trains one")
    return _load(path, path.stat().st_mtime_ns)


class _Reader:
    """A policy, and what it reads of one model.

    Where there are more units than problems of a suite have, what was learned does not hold, and it is the rule that the
    policy began as.

    Args:
        space: The masks to choose from.
        statistics: Statistic name to (n_layers,) values.
        policy: The policy's file; None is the bundled one.

    Raises:
        ValueError: a statistic that the policy reads is not observed, or not finite.
    """

    def __init__(self, space: MaskSpace, statistics: Mapping[str, Floats] | None, policy: str | None) -> None:
        self.network = load_policy(policy)
        if space.n_layers > MAX_UNITS:
            self.network = UnitNetworks.untrained(self.network.config)
        names, known = self.network.config.statistics, {} if statistics is None else statistics
        try:
            self.values = np.stack([known[name] for name in names], axis=1)
        except KeyError as error:
            raise ValueError(
                f"the policy reads {error.args[0]} too, which the environment does not show: give it statistics={names}"
            ) from error
        except ValueError as error:
            raise ValueError(f"the policy reads {', '.join(names)}: {error}") from error
        if not np.isfinite(self.values).all():
            wrong = ", ".join(np.array(names)[~np.isfinite(self.values).all(axis=0)])
            raise ValueError(f"the policy reads {wrong}, which is not finite for every layer: clip it, as das_gym's are")
        self.space = space

    def masks(self, rng: np.random.Generator | None = None, count: int = 1) -> Masks:
        """(count, n_layers): the policy's mask, or with a generator some of those that it thinks good."""
        found = choose(self.network, self.values, self.space.budget, rng, count)
        if self.space.skip_num is not None:
            return found
        return np.stack([self.space.top(np.where(mask, 1.0, 0.0)) for mask in found])

    def hint(self) -> Hint | None:
        """What the statistics tell of whole masks; None where the policy does not read the necessary ones."""
        known = dict(zip(self.network.config.statistics, self.values.T, strict=True))
        return Hint(NeighbourCosts(known), self.space) if NeighbourCosts.needs <= known.keys() else None


class Policy(Heuristic):
    """Ours, learned: a policy trained on other models reads the layer statistics of this one; one mask, no search.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
        statistics: Statistic name to (n_layers,) values.
        policy: File of a policy, see `python -m agents policy`; None is the bundled one.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        policy: str | None = None,
    ) -> None:
        super().__init__(space, seed)
        reader = _Reader(space, statistics, policy)
        self.statistics_read = reader.network.config.statistics
        self._mask = reader.masks()[0]

    def best(self) -> Masks:
        """The mask."""
        return self._mask.copy()


class PolicyBayes(Bayes):
    """`bayes` that begins with the policy's masks, and whose process is told what the policy's statistics say of the others.

    What units cost alone and beside the next ones of their stream tells of every mask; how far that is to be believed is
    learned like the process's other variances, see `HintedProcess`. A policy that does not read `leave_one_out` and places
    gives no such hint.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        statistics: Statistic name to (n_layers,) values.
        policy: File of a policy; None is the bundled one.
        noisy: As for `Bayes`.
    """

    drawn = 3

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        policy: str | None = None,
        noisy: bool = False,
    ) -> None:
        super().__init__(space, seed, noisy)
        self._reader = _Reader(space, statistics, policy)
        self.statistics_read = self._reader.network.config.statistics
        self._hint = self._reader.hint()
        if self._hint is not None:
            self.grid, self.indices = HINTED_GRID, [*self.start, HINT_START]

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks that were not told before: the policy's own first, then some that it thinks good."""
        if len(self.rewards) >= self.drawn:
            return super().ask(n)
        own = self._reader.masks()[0]
        first = [] if own.tobytes() in self.rewards else [own]
        seen = {*self.rewards, own.tobytes()}
        more = n - len(first)
        if not more:
            return np.array(first)
        drawn = iter(self._reader.masks(self.rng, _DRAWS_A_MASK * more))

        def draw() -> Masks:
            found = next(drawn, None)
            return self.space.sample(self.rng) if found is None else found

        others = self.space.distinct(more, draw, self.rng, seen)
        return np.concatenate((np.array(first, dtype=bool).reshape(-1, self.n_layers), others))

    def _process(self, masks: Masks, scores: Floats, indices: Sequence[int]) -> MaskProcess:
        if self._hint is None:
            return super()._process(masks, scores, indices)
        return HintedProcess(masks, scores, indices, self._hint)

    def _incumbent(self, process: Process, scores: Floats) -> float:
        """The highest posterior mean of a mask told.

        Where the hint is believed and single masks are off it, the best score told is out of the reach of every mean: each
        expected improvement is next to nothing, and the largest that of some mask far from all.
        """
        return float(process.mean(self.scored_masks()).max())
