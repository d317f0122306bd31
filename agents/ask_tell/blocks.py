"""What agents may know of blocks of consecutive layers: measured on the model, or estimated from single layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.best_seen import OneMask

from das_gym.problem.budget import Floats
from das_gym.problem.mask_space import MaskSpace

ESTIMATED_FROM = ("stream", "depth", "block_influence_pooled", "block_influence_tokens")
"""Layer statistics that stand for blocks that nobody measured."""


@dataclass(frozen=True)
class Blocks:
    """Distances between input and output of blocks.

    Attributes:
        stages: The layers of each stage, which run side by side: METER's are a text and an image layer each.
        streams: The stream of each layer.
        angular: A row a layer; entry m - 1 is the angle, 0..1 of pi, of the block of m layers of its stream that begins
            there; None or missing where there is none.
        cosine: Likewise 1 - cos over tokens, 0..2.
    """

    stages: Sequence[Sequence[int]]
    streams: Sequence[Any]
    angular: Sequence[Sequence[float | None]]
    cosine: Sequence[Sequence[float | None]]

    @classmethod
    def of(cls, measured: Mapping[str, Any] | None, statistics: Mapping[str, Floats] | None, n_layers: int) -> Blocks:
        """What was measured (`das_gym.problem.blocks.measure_blocks`), or an estimate.

        Estimated from block influence, 1 - cos of single layers: the angle of a block is taken to be the sum of its layers'
        angles, which is the most that it can be. Without the statistic `stream` all layers are one stream, in mask order;
        without block influence all blocks are alike.

        Raises:
            ValueError: measured on another number of layers, or not by that function.
        """
        if measured is not None:
            if set(measured) != {"stages", "streams", "angular", "cosine"} or len(measured["streams"]) != n_layers:
                raise ValueError(
                    f"blocks is not what das_gym.problem.blocks.measure_blocks gives for {n_layers} layers; leave it out"
                )
            for name in ("angular", "cosine"):
                rows = [[None if value is None else float(value) for value in row] for row in measured[name]]
                if len(rows) != n_layers or any(value is not None and not 0 <= value <= 2 for row in rows for value in row):
                    raise ValueError(f"blocks: {name} is not a row of distances for each of {n_layers} layers; leave it out")
            return cls(**measured)
        known = statistics or {}
        streams = np.asarray(known.get("stream", np.zeros(n_layers))).tolist()
        order = {stream: [i for i in range(n_layers) if streams[i] == stream] for stream in dict.fromkeys(streams)}
        pooled, tokens = (np.asarray(known.get(name, np.ones(n_layers)), dtype=float) for name in ESTIMATED_FROM[2:])
        side_by_side = "depth" in known and len({len(chain) for chain in order.values()}) == 1
        stages = [list(s) for s in zip(*order.values(), strict=True)] if side_by_side else [[i] for i in range(n_layers)]
        return cls(
            stages,
            streams,
            [_angles(pooled, order[streams[i]], i) for i in range(n_layers)],
            [[1 - math.cos(math.pi * a) for a in _angles(tokens, order[streams[i]], i)] for i in range(n_layers)],
        )

    def chain(self, stream: Any) -> list[int]:
        """The layers of a stream, in the order in which they run."""
        return [layer for stage in self.stages for layer in stage if self.streams[layer] == stream]


def _angles(influence: Floats, chain: list[int], layer: int) -> list[float]:
    """Estimated angles, 0..1 of pi, of the blocks that begin at a layer."""
    singles = np.arccos(np.clip(1 - influence[chain[chain.index(layer) :]], -1, 1)) / np.pi
    return np.minimum(np.cumsum(singles), 1.0).tolist()


def distance(rows: Sequence[Sequence[float | None]], layer: int, length: int) -> float | None:
    """That of the block of so many layers from one on; None where there is none."""
    row = rows[layer]
    return row[length - 1] if length <= len(row) else None


class OfBlocks(OneMask):
    """An agent that chooses by blocks of layers.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
        statistics: Statistic name to (n_layers,) values, for the estimate where blocks were not measured.
        blocks: What `das_gym.problem.blocks.measure_blocks` gives. Commands fill it in wherever the model is at hand;
            without it a block's angle is taken to be the sum of its layers' (`Blocks.of`).

    Raises:
        ValueError: `blocks` of another model.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        blocks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space, seed)
        self.blocks = Blocks.of(blocks, statistics, self.n_layers)
        self.statistics_read = ESTIMATED_FROM if blocks is None else ()

    def own(self, layer: int) -> float:
        """How unlike a layer's own input and output are: 1 - cos over tokens, 0..2."""
        return distance(self.blocks.cosine, layer, 1) or 0.0
