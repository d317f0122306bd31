"""Agents that use a trained policy: for its mask alone, or to start and guide a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import MaskProcess
from das_gym.agents.ask_tell.heuristics import Heuristic
from das_gym.agents.policy.choosing import choose
from das_gym.agents.policy.hinted import HINT_START, HINTED_GRID, Hint, HintedProcess, NeighbourCosts
from das_gym.agents.policy.network import UnitNetworks

from das_gym.files import absolute
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import MAX_UNITS, bundled_suite

POLICY_FILE = "policy.safetensors"

_DRAWS_PER_MASK = 8
"""Masks that are drawn from the policy for each wanted one; if all are known already, random ones follow."""


def bundled_policy() -> Path:
    """Return the path of the bundled policy."""
    return bundled_suite() / POLICY_FILE


@lru_cache(maxsize=4)
def _load(path: Path, stamp: int) -> UnitNetworks:
    del stamp  # part of the cache's key: a policy that was trained again is loaded again
    return UnitNetworks.load(path)


def load_policy(policy: str | None = None) -> UnitNetworks:
    """Load a policy, from a process-wide cache.

    Args:
        policy: Its file; None is the bundled one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a policy.
    """
    path = bundled_policy() if policy is None else absolute(policy)
    if not path.is_file():
        raise FileNotFoundError(f"no policy at {path}. Train one: `python -m agents policy with out={path}`")
    return _load(path, path.stat().st_mtime_ns)


class PolicyReader:
    """A policy with the statistics of one model.

    The policy was trained on problems of up to `MAX_UNITS` units. For more, the untrained rule is used.

    Args:
        space: The masks to choose from.
        statistics: Statistic name to (n_layers,) values.
        policy: The policy's file; None is the bundled one.

    Attributes:
        names: The statistics that the policy reads.

    Raises:
        ValueError: a statistic that the policy reads is not observed, or not finite.
    """

    def __init__(self, space: MaskSpace, statistics: Mapping[str, Floats] | None, policy: str | None) -> None:
        self.space, self.network = space, load_policy(policy)
        if space.n_layers > MAX_UNITS:
            self.network = UnitNetworks.untrained(self.network.config)
        self.names = self.network.config.statistics
        known = {} if statistics is None else statistics
        try:
            self.values = np.stack([known[name] for name in self.names], axis=1)
        except (KeyError, ValueError) as error:
            raise ValueError(f"the policy needs `statistics={self.names}` of the environment ({error})") from error
        infinite = ~np.isfinite(self.values).all(axis=0)
        if infinite.any():
            wrong = ", ".join(np.array(self.names)[infinite])
            raise ValueError(f"the policy reads {wrong}, which is not finite for every layer. Clip it, as das_gym's are")

    def masks(self, rng: np.random.Generator | None = None, count: int = 1) -> Masks:
        """Return (count, n_layers): the policy's mask, or with a generator masks drawn by its scores."""
        found = choose(self.network, self.values, self.space.budget, rng, count)
        if self.space.skip_num is not None:
            return found
        return np.stack([self.space.top(np.where(mask, 1.0, 0.0)) for mask in found])

    def hint(self) -> Hint | None:
        """Return a predictor of masks' rewards from statistics; None if the policy does not read the necessary ones."""
        known = dict(zip(self.names, self.values.T, strict=True))
        return Hint(NeighbourCosts(known), self.space) if NeighbourCosts.needs <= known.keys() else None


class Policy(Heuristic):
    """A policy trained on other models, which reads the layer statistics of this one. One mask, no search.

    Args:
        space: The masks to choose from.
        seed: Not used.
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
        reader = PolicyReader(space, statistics, policy)
        self.statistics_read = reader.names
        self._mask = reader.masks()[0]

    def best(self) -> Masks:
        """Return the mask."""
        return self._mask.copy()


class PolicyBayes(Bayes):
    """`bayes` that starts with the policy's masks, and whose process knows what the policy's statistics predict.

    The costs of single units and of runs of adjacent units in a stream predict the cost of every mask. How far the first
    process of `Bayes` trusts that is learned like its other variances, see `HintedProcess`; the second does not read it. A
    policy that does not read `leave_one_out`, `stream` and `depth` gives no such hint.

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
        self._reader = PolicyReader(space, statistics, policy)
        self.statistics_read = self._reader.names
        self._hint = self._reader.hint()
        if self._hint is not None:
            self.grid, self.indices = HINTED_GRID, [*self.start, HINT_START]

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks that were not scored before: first the policy's own, then masks drawn from it."""
        if len(self.rewards) >= self.drawn:
            return super().ask(n)
        own = self._reader.masks()[0]
        first = [] if own.tobytes() in self.rewards else [own]
        missing = n - len(first)
        if not missing:
            return np.array(first)
        drawn = iter(self._reader.masks(self.rng, _DRAWS_PER_MASK * missing))

        def draw() -> Masks:
            mask = next(drawn, None)
            return self.space.sample(self.rng) if mask is None else mask

        others = self.space.distinct(missing, draw, self.rng, {*self.rewards, own.tobytes()})
        return np.concatenate((np.array(first, dtype=bool).reshape(-1, self.n_layers), others))

    def _process(self, masks: Masks, scores: Floats, indices: Sequence[int]) -> MaskProcess:
        if self._hint is None:
            return super()._process(masks, scores, indices)
        return HintedProcess(masks, scores, indices, self._hint)
