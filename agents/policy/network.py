"""The network: attention over units, the same weights for each, so that it works for any number of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from das_gym.config import build
from das_gym.models.tensor_files import read_safetensors, write_tensors
from das_gym.problem.statistics import STATISTICS

FORMAT = "das_gym policy 1"
GLOBALS = 4
"""What every unit is told of the whole: both goals, what is left to do, and how many units there are."""

MOST = 4.0
"""Standard scores beyond are clipped."""


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

    Statistics are read twice: as standard scores within the problem, in which models of different sizes are alike, and as
    logarithms of what they are.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        count, width = len(config.statistics), config.width
        self.enter = nn.Linear(2 * count + 1 + GLOBALS, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.direct = nn.Linear(count, 1, bias=False)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.score.weight)
        if "leave_one_out" in config.statistics:  # begins as the best of the simple rules, and learns to do better
            self.direct.weight.data[0, config.statistics.index("leave_one_out")] = -1.0

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
        standard, logs = self._read(statistics, there, count[..., None])
        done = skipped.sum(dim=1, keepdim=True) / count
        left = torch.where(goals[:, :1] > 0, goals[:, :1] - done, goals[:, 1:] - saved[:, None])
        whole = torch.cat((goals, left, count / 16), dim=1)[:, None].expand(-1, units.shape[1], -1)
        hidden = self.enter(torch.cat((standard, logs, skipped[..., None], whole), dim=2))
        absent = units == 0
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=absent)
        hidden = self.norm(hidden)
        scores = (self.score(hidden) + self.direct(standard)).squeeze(-1)
        return scores, (hidden * there).sum(dim=1) / count

    @staticmethod
    def _read(statistics: Tensor, there: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        mean = (statistics * there).sum(dim=1, keepdim=True) / count
        spread = (((statistics - mean) ** 2 * there).sum(dim=1, keepdim=True) / count).sqrt()
        standard = ((statistics - mean) / (spread + 1e-6)).clamp(-MOST, MOST) * there
        return standard, statistics.sign() * torch.log1p(10 * statistics.abs()) / 3 * there

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        write_tensors(Path(path), tensors, {"format": FORMAT, "config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> UnitNetwork:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or of another version.
        """
        file = read_safetensors(Path(path))
        if file.config.get("format") != FORMAT:
            raise ValueError(f"{path} is no policy of this version ({FORMAT!r}); train one with `python -m agents policy`")
        config = build(PolicyConfig, json.loads(file.config["config"]))
        unknown = [name for name in config.statistics if name not in STATISTICS]
        if unknown:
            raise ValueError(f"{path} reads {', '.join(unknown)}, which nobody registered: import what registers it first")
        network = cls(config)
        network.load_state_dict(dict(file.tensors))
        return network.eval()
