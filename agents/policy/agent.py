"""The agent that takes the mask of a trained policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from das_gym.agents.ask_tell.heuristics import Heuristic
from das_gym.agents.policy.network import READS, PolicyEnsemble, PolicyInput, unit_costs

from das_gym.files import absolute
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import MAX_UNITS, bundled_suite

POLICY_FILE = "policy.safetensors"


def bundled_policy() -> Path:
    """Return the path of the bundled policy."""
    return bundled_suite() / POLICY_FILE


class Policy(Heuristic):
    """A policy trained on other models, which reads the layer statistics of this one. One mask, no search.

    It was trained on problems of up to `MAX_UNITS` units. For more, it takes the units with the least
    `unit_costs`.

    Args:
        statistics: Statistic name to (n_layers,) values.
        policy: File of a policy, see `python -m agents policy`; None is the bundled one.

    Raises:
        ValueError: a statistic that the policy reads is not observed, or not finite.
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
        network = PolicyEnsemble.load(bundled_policy() if policy is None else absolute(policy))
        try:  # a search measures a statistic when it is looked up
            known = {name: ({} if statistics is None else statistics)[name] for name in READS}
        except (KeyError, ValueError) as error:
            raise ValueError(f"the policy needs `statistics={READS}` of the environment ({error})") from error
        for name in READS:
            if not np.isfinite(known[name]).all():
                raise ValueError(f"the policy reads {name}, which is not finite for every layer. Clip it, as das_gym's are")
        if space.n_layers > MAX_UNITS:  # the network scores every mask, and they are too many
            self._mask = space.top(-unit_costs(known))
            return
        with torch.no_grad():
            best = int(network(PolicyInput.of([known], space.masks))[0].argmax())
        self._mask = space.masks[best]

    def best(self) -> Masks:
        """Return the mask."""
        return self._mask.copy()
