"""The policy network: attention over units with shared weights, so that it works for any number of units."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from das_gym.config import build
from das_gym.files import explain_damage
from das_gym.models.tensor_files import TensorFile, read_safetensors, write_tensors
from das_gym.problem.statistics import STATISTICS

FORMAT = "das_gym policy 2"
GLOBALS = 4
"""Inputs of every unit about the problem: both goals, the rest of the goal, and the number of units."""

READINGS = 3
"""Encodings of each statistic: standard score, logarithm and rank."""

HINT = "train one with `python -m agents policy`"

FAR = 1e9
"""Larger than any score, and finite."""

MAX_STANDARD_SCORE = 4.0

NEIGHBOURS = ("leave_one_out", "next_interaction", "run_interaction", "stream", "depth")
"""From these statistics a network computes the cost of each unit given the units that are skipped already."""


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of the network.

    Attributes:
        statistics: Names of the layer statistics that it reads.
        width: Width of a unit's vector.
        heads: Number of attention heads.
        blocks: Number of transformer blocks.
    """

    statistics: tuple[str, ...]
    width: int = 32
    heads: int = 4
    blocks: int = 2


class UnitNetwork(nn.Module):
    """A transformer over the units of a problem, which scores each unit for being skipped next.

    Each statistic is encoded three times: as standard score and as rank within the problem, which are comparable between
    models of different sizes, and as logarithm. If one unit matters more than all others together, as the first layers of
    most models do, standard scores of the others are almost equal, but their ranks differ.

    Before training it is a simple rule: skip what costs least alone (`leave_one_out`) or, if it reads `NEIGHBOURS`, what
    costs least given its neighbours that are skipped already (`conditional_cost`).

    Args:
        config: Its sizes.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._neighbours = [config.statistics.index(name) for name in NEIGHBOURS if name in config.statistics]
        self._reads_neighbours = len(self._neighbours) == len(NEIGHBOURS)
        count, width = len(config.statistics) + self._reads_neighbours, config.width
        self.enter = nn.Linear(READINGS * count + 1 + GLOBALS, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.direct = nn.Linear(count, 1, bias=False)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.score.weight)
        if self._reads_neighbours:
            self.direct.weight.data[0, -1] = -3.0
        elif "leave_one_out" in config.statistics:
            self.direct.weight.data[0, config.statistics.index("leave_one_out")] = -3.0

    def forward(
        self, statistics: Tensor, units: Tensor, skipped: Tensor, goals: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the units.

        Args:
            statistics: (batch, n, n_statistics) float.
            units: (batch, n) float, 1 = the unit exists, 0 = padding.
            skipped: (batch, n) float, 1 = skipped already.
            goals: (batch, 2) float: fraction of the units to skip, or 0; fraction of the cost to save, or 0.
            saved: (batch,) float: fraction of the cost saved so far.

        Returns:
            (batch, n) scores, the highest is skipped next; (batch, width) a vector of the whole problem.
        """
        count = units.sum(dim=1, keepdim=True).clamp_min(1)
        exists = units[..., None]
        if self._reads_neighbours:
            cost = conditional_cost(statistics[..., self._neighbours], skipped, units)
            statistics = torch.cat((statistics, cost[..., None]), dim=2)
        standard, logs, ranks = self.encode(statistics, exists, count[..., None])
        done = skipped.sum(dim=1, keepdim=True) / count
        left = torch.where(goals[:, :1] > 0, goals[:, :1] - done, goals[:, 1:] - saved[:, None])
        problem = torch.cat((goals, left, count / 16), dim=1)[:, None].expand(-1, units.shape[1], -1)
        hidden = self.enter(torch.cat((standard, logs, ranks, skipped[..., None], problem), dim=2))
        absent = units == 0
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=absent)
        hidden = self.norm(hidden)
        scores = (self.score(hidden) + self.direct(ranks)).squeeze(-1)
        return scores, (hidden * exists).sum(dim=1) / count

    @staticmethod
    def encode(statistics: Tensor, exists: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return standard scores, logarithms, and ranks from -1 to 1 (ties share theirs): (batch, n, n_statistics) each."""
        mean = (statistics * exists).sum(dim=1, keepdim=True) / count
        spread = (((statistics - mean) ** 2 * exists).sum(dim=1, keepdim=True) / count).sqrt()
        standard = ((statistics - mean) / (spread + 1e-6)).clamp(-MAX_STANDARD_SCORE, MAX_STANDARD_SCORE) * exists
        logs = statistics.sign() * torch.log1p(10 * statistics.abs()) / 3 * exists
        higher = (statistics[:, :, None] - statistics[:, None]).sign() * exists[:, None]
        return standard, logs, higher.sum(dim=2) / count * exists


def conditional_cost(statistics: Tensor, skipped: Tensor, units: Tensor) -> Tensor:
    """Return the cost in nats of skipping each unit given what is skipped, from runs of up to three units: (batch, n).

    The next unit is the one of the same stream with the next depth. `NeighbourCosts` computes the costs of whole masks from
    the same statistics: the cost here is the difference of two of those, as a test checks.

    Args:
        statistics: (batch, n, 5), those of `NEIGHBOURS`.
        skipped: (batch, n) float, 1 = skipped already.
        units: (batch, n) float, 1 = the unit exists.
    """
    alone, pairs, runs, stream, depth = statistics.unbind(dim=2)
    place = depth + 1e-4 * torch.arange(depth.shape[1], device=depth.device)
    ahead = place[:, None] - place[:, :, None]  # (batch, n, n): how much deeper the second unit is than the first
    never = (stream[:, :, None] != stream[:, None]) | (ahead <= 0) | ((units[:, :, None] * units[:, None]) == 0)
    ahead = ahead.masked_fill(never, torch.inf)
    following = ((ahead == ahead.amin(dim=2, keepdim=True)) & ~never).to(alone)

    def after(values: Tensor) -> Tensor:
        """Return the values of each unit's next unit."""
        return (following @ values[..., None]).squeeze(-1)

    def before(values: Tensor) -> Tensor:
        """Return the values of each unit's previous unit."""
        return (following.mT @ values[..., None]).squeeze(-1)

    next_, previous = after(skipped), before(skipped)
    cost = alone + pairs * next_ + before(pairs * skipped)
    return cost + runs * next_ * after(next_) + before(runs * skipped) * next_ + before(before(runs * skipped)) * previous


class UnitNetworks(nn.Module):
    """An ensemble of independently trained networks, whose mean is more reliable than each.

    Args:
        members: One or more networks that read the same statistics.
    """

    def __init__(self, members: Iterable[UnitNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def config(self) -> PolicyConfig:
        """The sizes of each member."""
        return self.members[0].config  # type: ignore[return-value]

    def forward(
        self, statistics: Tensor, units: Tensor, skipped: Tensor, goals: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the units: the mean of the members' log-probabilities over the units that can still be skipped."""
        removed = (units == 0) | (skipped > 0)
        found = [member(statistics, units, skipped, goals, saved) for member in self.members]
        scores = [one.masked_fill(removed, -FAR).log_softmax(dim=1) for one, _ in found]
        return torch.stack(scores).mean(dim=0), torch.stack([problem for _, problem in found]).mean(dim=0)

    @classmethod
    def untrained(cls, config: PolicyConfig) -> UnitNetworks:
        """Return the rule that training starts from. It does not advance torch's generator."""
        with torch.random.fork_rng(devices=[]):
            return cls([UnitNetwork(config)]).eval()

    def save(self, path: str | Path) -> None:
        """Write the file."""
        write_tensors(Path(path), self.state_dict(), {"format": FORMAT, "config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> UnitNetworks:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is damaged, or of another version.
        """
        file = read_safetensors(Path(path))
        if file.config.get("format") != FORMAT:
            raise ValueError(f"{path} is not a policy of this version ({FORMAT!r}): {HINT}")
        config, tensors = cls._config(Path(path), file), dict(file.tensors)
        try:
            with torch.device("meta"):  # so that sizes in a damaged config cannot exhaust memory
                networks = cls(UnitNetwork(config) for _ in {name.split(".")[1] for name in tensors})
            networks.load_state_dict(tensors, assign=True)
        except (RuntimeError, AssertionError, LookupError) as error:
            raise ValueError(f"{path} is damaged, its tensors do not match its config: {HINT}") from error
        unknown = [name for name in config.statistics if name not in STATISTICS]
        if unknown:
            raise ValueError(f"{path} reads {', '.join(unknown)}, which are not registered. Import their module first")
        return networks.eval()

    @staticmethod
    def _config(path: Path, file: TensorFile) -> PolicyConfig:
        with explain_damage(path, HINT):
            config = build(PolicyConfig, json.loads(file.config["config"]))
            if not (1 <= config.blocks <= len(file.tensors) and 1 <= config.heads <= config.width and config.statistics):
                raise ValueError(f"{config.blocks} blocks, {config.heads} heads of {config.width}, {config.statistics}")
        return config
