"""The network: attention over units, the same weights for each, so that it works for any number of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from das_gym.config import build
from das_gym.files import damage_named
from das_gym.models.tensor_files import TensorFile, read_safetensors, write_tensors
from das_gym.problem.statistics import STATISTICS

FORMAT = "das_gym policy 2"
GLOBALS = 4
"""What every unit is told of the whole: both goals, what is left to do, and how many units there are."""

READINGS = 3
"""How often a statistic is read."""

WAY_OUT = "train one with `python -m agents policy`"

FAR = 1e9
"""Less than any score, and finite."""

MOST = 4.0
"""Standard scores beyond are clipped."""

NEIGHBOURS = ("leave_one_out", "next_interaction", "run_interaction", "stream", "depth")
"""A network that reads all of these is told what skipping each unit costs beside what is skipped already."""


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of the network.

    Attributes:
        statistics: Names of the layer statistics that it reads.
        width: Of a unit's vector.
        heads: Of attention.
        blocks: Of attention and a multi-layer perceptron.
    """

    statistics: tuple[str, ...]
    width: int = 32
    heads: int = 4
    blocks: int = 2


class UnitNetwork(nn.Module):
    """A vector for every unit of a problem, which has looked at all the others.

    Statistics are read three times: as standard scores and as ranks within the problem, in which models of different sizes
    are alike, and as logarithms of what they are. Where one unit matters more than all others together, as the first layers
    of most models, standard scores tell the others hardly apart, and ranks do.

    It begins as a simple rule, and learns to do better: to skip what costs least alone (`leave_one_out`), or, where it reads
    `NEIGHBOURS`, what costs least beside its neighbours that are skipped already (`cost_beside`).

    Args:
        config: Its sizes.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._neighbours = [config.statistics.index(name) for name in NEIGHBOURS if name in config.statistics]
        self._sees_neighbours = len(self._neighbours) == len(NEIGHBOURS)
        count, width = len(config.statistics) + self._sees_neighbours, config.width
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
        if self._sees_neighbours:
            self.direct.weight.data[0, -1] = -3.0
        elif "leave_one_out" in config.statistics:
            self.direct.weight.data[0, config.statistics.index("leave_one_out")] = -3.0

    def forward(
        self, statistics: Tensor, units: Tensor, skipped: Tensor, goals: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What to skip next.

        Args:
            statistics: (batch, n, n_statistics) float.
            units: (batch, n) float, 1 = there is such a unit.
            skipped: (batch, n) float, 1 = skipped already.
            goals: (batch, 2) float: share of the units to skip, or 0; share of the cost to save, or 0.
            saved: (batch,) float: share of the cost saved so far.

        Returns:
            (batch, n) scores, the larger the rather to be skipped next; (batch, width) what the whole is like.
        """
        count = units.sum(dim=1, keepdim=True).clamp_min(1)
        there = units[..., None]
        if self._sees_neighbours:
            beside = cost_beside(statistics[..., self._neighbours], skipped, units)
            statistics = torch.cat((statistics, beside[..., None]), dim=2)
        standard, logs, ranks = self._read(statistics, there, count[..., None])
        done = skipped.sum(dim=1, keepdim=True) / count
        left = torch.where(goals[:, :1] > 0, goals[:, :1] - done, goals[:, 1:] - saved[:, None])
        whole = torch.cat((goals, left, count / 16), dim=1)[:, None].expand(-1, units.shape[1], -1)
        hidden = self.enter(torch.cat((standard, logs, ranks, skipped[..., None], whole), dim=2))
        absent = units == 0
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=absent)
        hidden = self.norm(hidden)
        scores = (self.score(hidden) + self.direct(ranks)).squeeze(-1)
        return scores, (hidden * there).sum(dim=1) / count

    @staticmethod
    def _read(statistics: Tensor, there: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, n, n_statistics) each: standard scores, logarithms, and ranks from -1 to 1, equal ones sharing theirs."""
        mean = (statistics * there).sum(dim=1, keepdim=True) / count
        spread = (((statistics - mean) ** 2 * there).sum(dim=1, keepdim=True) / count).sqrt()
        standard = ((statistics - mean) / (spread + 1e-6)).clamp(-MOST, MOST) * there
        logs = statistics.sign() * torch.log1p(10 * statistics.abs()) / 3 * there
        higher = (statistics[:, :, None] - statistics[:, None]).sign() * there[:, None]
        return standard, logs, higher.sum(dim=2) / count * there


def cost_beside(statistics: Tensor, skipped: Tensor, units: Tensor) -> Tensor:
    """(batch, n) nats: what skipping each unit costs beside what is skipped, as far as runs of three units tell.

    The next of a unit is the one of its stream with the next depth.

    Args:
        statistics: (batch, n, 5) those of `NEIGHBOURS`.
        skipped: (batch, n) float, 1 = skipped already.
        units: (batch, n) float, 1 = there is such a unit.
    """
    alone, pairs, runs, stream, depth = statistics.unbind(dim=2)
    place = depth + 1e-4 * torch.arange(depth.shape[1], device=depth.device)
    ahead = place[:, None] - place[:, :, None]  # (batch, n, n): by how much the second is behind the first
    never = (stream[:, :, None] != stream[:, None]) | (ahead <= 0) | ((units[:, :, None] * units[:, None]) == 0)
    ahead = ahead.masked_fill(never, torch.inf)
    following = ((ahead == ahead.amin(dim=2, keepdim=True)) & ~never).to(alone)

    def after(values: Tensor) -> Tensor:
        """The values of the next unit of each."""
        return (following @ values[..., None]).squeeze(-1)

    def before(values: Tensor) -> Tensor:
        """The values of the unit of which each is the next."""
        return (following.mT @ values[..., None]).squeeze(-1)

    next_, previous = after(skipped), before(skipped)
    cost = alone + pairs * next_ + before(pairs * skipped)
    return cost + runs * next_ * after(next_) + before(runs * skipped) * next_ + before(before(runs * skipped)) * previous


class UnitNetworks(nn.Module):
    """Networks that were trained apart and decide together: one is right here, another there, and their mean is steadier.

    Args:
        members: One or more that read the same statistics.
    """

    def __init__(self, members: Iterable[UnitNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def config(self) -> PolicyConfig:
        """Of each of them."""
        return self.members[0].config  # type: ignore[return-value]

    def forward(
        self, statistics: Tensor, units: Tensor, skipped: Tensor, goals: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `UnitNetwork.forward`; scores are the mean of the members' log-probabilities of what can still be skipped."""
        gone = (units == 0) | (skipped > 0)
        found = [member(statistics, units, skipped, goals, saved) for member in self.members]
        scores = [one.masked_fill(gone, -FAR).log_softmax(dim=1) for one, _ in found]
        return torch.stack(scores).mean(dim=0), torch.stack([whole for _, whole in found]).mean(dim=0)

    @classmethod
    def untrained(cls, config: PolicyConfig) -> UnitNetworks:
        """One that has learned nothing: the rule that training begins as. Nothing is drawn from anybody's generator."""
        with torch.random.fork_rng(devices=[]):
            return cls([UnitNetwork(config)]).eval()

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_tensors(Path(path), self.state_dict(), {"format": FORMAT, "config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> UnitNetworks:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or of another version.
        """
        file = read_safetensors(Path(path))
        if file.config.get("format") != FORMAT:
            raise ValueError(f"{path} is no policy of this version ({FORMAT!r}): {WAY_OUT}")
        config, tensors = cls._config(Path(path), file), dict(file.tensors)
        try:
            with torch.device("meta"):  # what a file claims takes no memory
                networks = cls(UnitNetwork(config) for _ in {name.split(".")[1] for name in tensors})
            networks.load_state_dict(tensors, assign=True)
        except (RuntimeError, AssertionError, LookupError) as error:
            raise ValueError(f"{path} is damaged, its tensors are not those of its config: {WAY_OUT}") from error
        unknown = [name for name in config.statistics if name not in STATISTICS]
        if unknown:
            raise ValueError(f"{path} reads {', '.join(unknown)}, which nobody registered: import what registers it first")
        return networks.eval()

    @staticmethod
    def _config(path: Path, file: TensorFile) -> PolicyConfig:
        with damage_named(path, WAY_OUT):
            config = build(PolicyConfig, json.loads(file.config["config"]))
            if not (1 <= config.blocks <= len(file.tensors) and 1 <= config.heads <= config.width and config.statistics):
                raise ValueError(f"{config.blocks} blocks, {config.heads} heads of {config.width}, {config.statistics}")
        return config
