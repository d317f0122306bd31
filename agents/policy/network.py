"""The policy network, which estimates the cost of masks from layer statistics, and the agent that takes its best mask.

Its weights are shared by units, so one network fits models with different numbers of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from das_gym.agents.ask_tell.heuristics import Heuristic
from torch import Tensor, nn

from das_gym.files import absolute
from das_gym.models.tensor_files import read_safetensors, write_tensors
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import MAX_UNITS, bundled_suite

POLICY_FILE = "policy.safetensors"
FORMAT = "das_gym policy 4"
HINT = "train one with `python -m agents policy`"

EFFECTS = ("leave_one_out", "leave_one_out_25", "leave_one_out_40")
"""What skipping a unit costs where none, a quarter and two fifths of the units are skipped."""

READS = (*EFFECTS, "stream", "depth")
"""The layer statistics that a policy reads."""

ENCODINGS = 3
"""Encodings of each statistic: standard score, logarithm and rank."""

MAX_STANDARD_SCORE = 4.0
RELATIONS = 8
"""Inputs about how the units of a pair lie to each other."""

WIDTH = 24
"""Hidden width of a network."""


@dataclass(frozen=True)
class PolicyInput:
    """The input of a policy: one or more problems that share their units and their masks.

    Attributes:
        units: (problems, n, ENCODINGS * len(READS)) encoded statistics.
        relations: (pairs, RELATIONS), pairs of units in the order of `numpy.triu_indices(n, 1)`.
        skipped: (masks, n) float, 1 = skipped.
        both: (masks, pairs) float, 1 = both units of the pair are skipped.
        costs: (problems, masks) sums of `unit_costs`, scaled for each problem by `log_scaled`.
    """

    units: Tensor
    relations: Tensor
    skipped: Tensor
    both: Tensor
    costs: Tensor

    @classmethod
    def of(cls, statistics: Sequence[Mapping[str, Floats]], masks: Masks) -> PolicyInput:
        """Return the input of problems by their statistics, name to (n,) values, for (masks, n) masks to choose from."""
        values = np.stack([np.stack([known[name] for name in READS], axis=1) for known in statistics])
        costs = np.stack([masks @ unit_costs(known) for known in statistics])
        first, second = np.triu_indices(masks.shape[1], 1)
        return cls(
            encode(torch.from_numpy(values.astype(np.float32))),
            torch.from_numpy(relations(statistics[0]["stream"], statistics[0]["depth"])),
            torch.from_numpy(masks.astype(np.float32)),
            torch.from_numpy((masks[:, first] & masks[:, second]).astype(np.float32)),
            torch.from_numpy(log_scaled(costs).astype(np.float32)),
        )


def unit_costs(statistics: Mapping[str, Floats]) -> Floats:
    """Return (n,) estimated costs of units, the sum of `EFFECTS`, whose mask the policy takes without corrections."""
    return np.sum([np.asarray(statistics[name], float) for name in EFFECTS], axis=0)


def encode(statistics: Tensor) -> Tensor:
    """Return standard scores, logarithms, and ranks from -1 to 1 (ties share theirs): (problems, n, 3 * n_statistics).

    Standard scores and ranks within a problem are comparable between models of different sizes. If one unit matters more
    than all others together, as the first layers of most models do, standard scores of the others are almost equal, but
    their ranks differ.
    """
    spread, mean = torch.std_mean(statistics, dim=1, correction=0, keepdim=True)
    standard = ((statistics - mean) / (spread + 1e-6)).clamp(-MAX_STANDARD_SCORE, MAX_STANDARD_SCORE)
    logs = statistics.sign() * torch.log1p(10 * statistics.abs()) / 3
    ranks = (statistics[:, :, None] - statistics[:, None]).sign().mean(dim=2)
    return torch.cat((standard, logs, ranks), dim=2)


def relations(stream: Floats, depth: Floats) -> Floats:
    """Return how the units of each pair lie to each other, (pairs, RELATIONS) float32."""
    place = np.empty(len(stream))
    place[np.lexsort((depth, stream))] = np.arange(len(stream))
    first, second = np.triu_indices(len(stream), 1)
    same, steps = stream[first] == stream[second], np.abs(place[first] - place[second])
    apart = np.abs(depth[first] - depth[second])
    near = [same & (steps == count) for count in (1, 2, 3)]
    columns = (same, *near, same * np.exp(-steps / 2), ~same, ~same & (apart < 1e-6), apart)
    return np.stack(columns, axis=1).astype(np.float32)


def log_scaled(costs: Floats) -> Floats:
    """Return 2 log(1 + (cost - lowest) / (lower quartile - lowest)) of (problems, masks) costs.

    A few units that cost far more than others would dominate a linear scale, and hide the differences among good masks.
    """
    above = costs - costs.min(axis=1, keepdims=True)
    return 2 * np.log1p(above / (np.quantile(above, 0.25, axis=1, keepdims=True) + 1e-6))


class PolicyNetwork(nn.Module):
    """Scores masks by the scaled sums of `unit_costs`, corrected for single units and for pairs of units.

    Before training the corrections are 0, so that the best mask is the one with the lowest estimated cost.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        size = ENCODINGS * len(READS)
        self.enter = nn.Sequential(nn.Linear(size + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mix = nn.Linear(2 * width, width)
        self.unit = nn.Linear(width, 1)
        hidden, last = nn.Linear(2 * width + RELATIONS + 2, width), nn.Linear(width, 1)
        self.pair = nn.Sequential(hidden, nn.SiLU(), last)
        self.sharpness = nn.Parameter(torch.tensor(3.0).log())
        for layer in (self.unit, last):
            nn.init.zeros_(layer.weight)  # training starts at the rule without corrections, and can only leave it for a gain
            nn.init.zeros_(layer.bias)

    def forward(self, given: PolicyInput) -> Tensor:
        """Return (problems, masks) log-probabilities of the masks."""
        n = given.skipped.shape[1]
        size = torch.tensor([float(given.skipped.mean()), n / 16])  # how much is skipped, and of how many units
        hidden = self.enter(torch.cat((given.units, size.expand(*given.units.shape[:2], -1)), dim=2))
        whole = hidden.mean(dim=1, keepdim=True).expand_as(hidden)
        hidden = hidden + self.mix(torch.cat((hidden, whole), dim=2)).tanh()
        first, second = np.triu_indices(n, 1)
        one, other = hidden[:, first], hidden[:, second]
        known = torch.cat((given.relations, size.expand(len(first), -1)), dim=1).expand(len(hidden), -1, -1)
        pairs = self.pair(torch.cat((one + other, one * other, known), dim=2)).squeeze(2)
        costs = self.sharpness.exp() * given.costs + self.unit(hidden).squeeze(2) @ given.skipped.T + pairs @ given.both.T
        return (-costs).log_softmax(dim=1)


class PolicyEnsemble(nn.Module):
    """Networks that were trained independently; their mean is more reliable than each."""

    def __init__(self, members: Iterable[PolicyNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, given: PolicyInput) -> Tensor:
        """Return the mean of the members' log-probabilities of the masks, (problems, masks)."""
        return torch.stack([member(given) for member in self.members]).mean(dim=0)

    def save(self, path: str | Path) -> None:
        """Write the file."""
        write_tensors(Path(path), self.state_dict(), {"format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> PolicyEnsemble:
        """Read what `save` wrote; raise a ValueError for a damaged file, or one of another version."""
        file = read_safetensors(Path(path))
        if file.config.get("format") != FORMAT:
            raise ValueError(f"{path} is not a policy of this version ({FORMAT!r}): {HINT}")
        try:
            width = file.tensors["members.0.unit.weight"].shape[1]
            with torch.device("meta"):  # so that a damaged width cannot exhaust memory
                ensemble = cls(PolicyNetwork(width) for _ in {name.split(".")[1] for name in file.tensors})
            ensemble.load_state_dict(dict(file.tensors), assign=True)
        except (RuntimeError, AssertionError, LookupError) as error:
            raise ValueError(f"{path} is damaged, its tensors do not match each other: {HINT}") from error
        return ensemble.eval()


def bundled_policy() -> Path:
    """Return the path of the bundled policy."""
    return bundled_suite() / POLICY_FILE


class Policy(Heuristic):
    """A policy trained on other models, which reads the layer statistics of this one. One mask, no search.

    The network scores every mask. Models of more than `MAX_UNITS` units have too many: the units with the least
    `unit_costs` are skipped.

    Args:
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
        network = PolicyEnsemble.load(bundled_policy() if policy is None else absolute(policy))
        try:  # a search measures a statistic when it is looked up
            known = {name: ({} if statistics is None else statistics)[name] for name in READS}
        except (KeyError, ValueError) as error:
            raise ValueError(f"the policy needs `statistics={READS}` of the environment ({error})") from error
        for name in READS:
            if not np.isfinite(known[name]).all():
                raise ValueError(f"the policy reads {name}, which is not finite for every layer. Clip it, as das_gym's are")
        if space.n_layers > MAX_UNITS:
            self._mask = space.top(-unit_costs(known))
            return
        with torch.no_grad():
            best = int(network(PolicyInput.of([known], space.masks))[0].argmax())
        self._mask = space.masks[best]

    def best(self) -> Masks:
        """Return the mask."""
        return self._mask.copy()
