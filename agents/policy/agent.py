"""Agents that use a trained policy: for its mask alone, or to start and guide a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import MaskProcess
from das_gym.agents.ask_tell.heuristics import Heuristic
from das_gym.agents.policy.choosing import greedy_masks
from das_gym.agents.policy.hinted import HINT_START, HINTED_GRID, Hint, HintedProcess, NeighbourCosts
from das_gym.agents.policy.network import READS, PolicyEnsemble, PolicyInput

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
def _load(path: Path, stamp: int) -> PolicyEnsemble:
    del stamp  # part of the cache's key: a policy that was trained again is loaded again
    return PolicyEnsemble.load(path)


def load_policy(policy: str | None = None) -> PolicyEnsemble:
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

    The policy was trained on problems of up to `MAX_UNITS` units. For more, it is replaced by the rule that skips, one after
    another, the unit with the least estimated cost.

    Args:
        space: The masks to choose from.
        statistics: Statistic name to (n_layers,) values.
        policy: The policy's file; None is the bundled one.

    Attributes:
        costs: Costs of masks, estimated from the statistics.

    Raises:
        ValueError: a statistic that the policy reads is not observed, or not finite.
    """

    def __init__(self, space: MaskSpace, statistics: Mapping[str, Floats] | None, policy: str | None) -> None:
        self.space, network = space, load_policy(policy)
        try:  # a search measures a statistic when it is looked up
            known = {name: ({} if statistics is None else statistics)[name] for name in READS}
        except (KeyError, ValueError) as error:
            raise ValueError(f"the policy needs `statistics={READS}` of the environment ({error})") from error
        infinite = [name for name in READS if not np.isfinite(known[name]).all()]
        if infinite:
            wrong = ", ".join(infinite)
            raise ValueError(f"the policy reads {wrong}, which is not finite for every layer. Clip it, as das_gym's are")
        self.costs = NeighbourCosts(known)
        self._scores: Floats | None = None
        if space.n_layers <= MAX_UNITS:
            with torch.no_grad():
                self._scores = network(PolicyInput.of([known], space.masks))[0].double().numpy()

    def masks(self, rng: np.random.Generator | None = None, count: int = 1) -> Masks:
        """Return (m, n_layers), m <= count: the policy's best masks, or with a generator masks drawn from the policy."""
        if self._scores is None:
            found = greedy_masks(self.costs, self.space.budget, rng, count)
            if self.space.skip_num is not None:
                return found
            return np.stack([self.space.top(np.where(mask, 1.0, 0.0)) for mask in found])
        noise = 0.0 if rng is None else rng.gumbel(size=len(self._scores))
        return self.space.masks[np.argsort(-(self._scores + noise), kind="stable")[:count]]


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
        self.statistics_read = READS
        self._mask = PolicyReader(space, statistics, policy).masks()[0]

    def best(self) -> Masks:
        """Return the mask."""
        return self._mask.copy()


class PolicyBayes(Bayes):
    """`bayes` that starts with the policy's masks, and whose process knows what the policy's statistics predict.

    The costs of single units and of runs of adjacent units in a stream predict the cost of every mask. How far the first
    process of `Bayes` trusts that is learned like its other variances, see `HintedProcess`; the second does not read it.

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
        self.statistics_read = READS
        self._hint = Hint(self._reader.costs, space)
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
        return HintedProcess(masks, scores, indices, self._hint)
