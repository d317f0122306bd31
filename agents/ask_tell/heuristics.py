"""Pruning heuristics: rules that choose one mask from measurements of the full model, without a search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed, Statistics

from das_gym.names import check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Heuristic(Agent):
    """Base class of agents that propose one mask, `best()`, and are then done."""

    draws: ClassVar[bool] = False

    def ask(self, n: int) -> Masks:
        """Return the heuristic's only mask, (1, n_layers); after it was scored, no mask, (0, n_layers)."""
        return np.zeros((0, self.n_layers), dtype=bool) if self.rewards else self.best()[None]


class Uniform(Heuristic):
    """Layers spread evenly over the model: every n/k-th layer in mask order, starting half a step in.

    With a budget by cost, k is the smallest number of layers that satisfies the budget when spread this way.
    """

    def best(self) -> Masks:
        masks = np.zeros((self.n_layers + 1, self.n_layers), dtype=bool)
        for count in range(1, self.n_layers + 1):
            masks[count, ((np.arange(count) + 0.5) * self.n_layers / count).astype(int)] = True
        return masks[self.space.contains(masks).argmax()]  # skipping everything satisfies any budget by cost


class BlockInfluence(Heuristic):
    """The layers with the least block influence, 1 - E cos(h_in, h_out) over tokens: ShortGPT (arXiv 2403.03853).

    METER's layers are measured within their own streams, and ranked together. Another `statistic` gives the pruning papers'
    one-shot ranking by that statistic; `leave_one_out` has the model score n_layers + 1 masks, which count as evaluations.

    Args:
        statistics: Layer statistics.
        statistic: The statistic to rank by; the lowest values are skipped.
    """

    preferences: Floats

    def __init__(
        self,
        space: MaskSpace,
        seed: Seed = None,
        statistics: Statistics | None = None,
        statistic: str = "block_influence_tokens",
    ) -> None:
        super().__init__(space, seed)
        known = statistics or {}
        if statistic not in known:  # a search measures more statistics than `known` lists, when they are looked up
            check_names([statistic], known, "statistic")
        self.statistics_read = (statistic,)
        self.preferences = -np.asarray(known[statistic], dtype=np.float64)

    def best(self) -> Masks:
        return self.space.top(self.preferences)


@dataclass(frozen=True)
class Blocks:
    """How much each block of consecutive layers changes its input.

    Attributes:
        stages: The layers of each stage, which run in parallel: METER's are a text and an image layer each.
        streams: The stream of each layer.
        angular: A row per layer. Entry m - 1 is the angle, 0..1 of pi, between input and output of the block of m layers
            that starts there; None or missing where the stream has no m layers left.
        cosine: The same with 1 - cos over tokens, 0..2.
    """

    stages: Sequence[Sequence[int]]
    streams: Sequence[Any]
    angular: Sequence[Sequence[float | None]]
    cosine: Sequence[Sequence[float | None]]

    @classmethod
    def estimate(cls, statistics: Statistics, n_layers: int) -> Self:
        """Estimate blocks from the block influence of single layers, if they were not measured.

        The angle of a block is estimated as the sum of its layers' angles, which is an upper bound. Without the statistic
        `stream` all layers form one stream, in mask order. Without block influence all blocks are alike.
        """
        streams = np.asarray(statistics.get("stream", np.zeros(n_layers))).tolist()
        chains = {stream: [i for i in range(n_layers) if streams[i] == stream] for stream in dict.fromkeys(streams)}
        stages = [[layer] for layer in range(n_layers)]
        if "depth" in statistics and len({len(chain) for chain in chains.values()}) == 1:  # they run in parallel
            stages = [list(stage) for stage in zip(*chains.values(), strict=True)]

        def angles(statistic: str) -> list[list[float]]:
            influence = np.asarray(statistics.get(statistic, np.ones(n_layers)), dtype=float)
            single = np.arccos(np.clip(1 - influence, -1, 1)) / np.pi
            after = [[i for i in chains[streams[layer]] if i >= layer] for layer in range(n_layers)]
            return [np.minimum(np.cumsum(single[layers]), 1.0).tolist() for layers in after]

        cosine = [[1 - math.cos(math.pi * angle) for angle in row] for row in angles("block_influence_tokens")]
        return cls(stages, streams, angles("block_influence_pooled"), cosine)


def distance(rows: Sequence[Sequence[float | None]], layer: int, length: int) -> float | None:
    """Return the entry of `Blocks.angular` or `cosine` for `length` layers from `layer` on; None if there is none."""
    row = rows[layer]
    return row[length - 1] if length <= len(row) else None


class BlockHeuristic(Heuristic):
    """Base class of heuristics that choose by blocks of layers.

    Args:
        statistics: Layer statistics, for `Blocks.estimate`.
        blocks: What `das_gym.problem.statistic_inputs.measure_blocks` returns. Searches fill it in where the model is at
            hand. None estimates the blocks.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: Seed = None,
        statistics: Statistics | None = None,
        blocks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space, seed)
        if blocks is None:
            self.blocks = Blocks.estimate(statistics or {}, self.n_layers)
            self.statistics_read = ("stream", "depth", "block_influence_pooled", "block_influence_tokens")
            return
        self.blocks = Blocks(**blocks)
        if any(len(rows) != self.n_layers for rows in (self.blocks.streams, self.blocks.angular, self.blocks.cosine)):
            given = len(self.blocks.streams)
            raise ValueError(f"`blocks` is of another model: got {given} layers, expected {self.n_layers}")


class Angular(BlockHeuristic):
    """The contiguous block with the least angular distance (Gromov et al., arXiv 2403.17887).

    Of all blocks of n layers: the least arccos(cos(h_in, h_out)) / pi at the last token, averaged over examples. The paper
    gives n. With a budget by cost, each block is as long as the budget needs from its first layer on. Where layers run in
    parallel, as METER's text and image layers do, a block consists of whole stages, and its distance is the mean over its
    streams; of its last stage only as many layers are skipped as the budget needs. A block does not run from one tower
    into another (vision layers into the decoder's).
    """

    def best(self) -> Masks:
        """Return the mask; where no block suffices, that of the layers with the least distances."""
        nothing = np.zeros(self.n_layers, dtype=bool)
        if self.space.contains(nothing[None])[0]:
            return nothing
        blocks = [self._shortest_block(first) for first in range(len(self.blocks.stages))]
        candidates = [block for block in blocks if block is not None]
        if candidates:
            return min(candidates, key=lambda block: block[0])[1]
        return self.space.top(np.array([-self._single(layer) for layer in range(self.n_layers)]))

    def _shortest_block(self, first: int) -> tuple[float, Masks] | None:
        """Return distance and mask of the shortest block from a stage on that satisfies the budget; None if none does."""
        mask = np.zeros(self.n_layers, dtype=bool)
        for length, last in enumerate(self.blocks.stages[first:], start=1):
            if {self.blocks.streams[i] for i in last} != {self.blocks.streams[i] for i in self.blocks.stages[first]}:
                return None
            for layer in sorted(last, key=self._single):
                mask[layer] = True
                if self.space.contains(mask[None])[0]:
                    distances = [distance(self.blocks.angular, layer, length) for layer in self.blocks.stages[first]]
                    return float(np.mean([each for each in distances if each is not None])), mask
        return None

    def _single(self, layer: int) -> float:
        return distance(self.blocks.angular, layer, 1) or 0.0


class Interlace(BlockHeuristic):
    """One of the first two of three consecutive layers: INTERLACE (Madinei et al., arXiv 2511.19676, CVPR 2026).

    Triplets of consecutive layers are ranked by the cosine of their input and output over tokens, the most similar first.
    Those that share a layer with an earlier one are passed over. Of the first two layers of each, the one whose own input
    and output are more similar is skipped, until the budget is satisfied. As in the released code
    (github.com/pmadinei/Interlace), pairs follow where triplets do not suffice, and the last layer is in neither. Ours:
    where pairs do not suffice either, the remaining layers follow by their own similarity, and METER's triplets lie within
    its streams and are ranked together. The training that INTERLACE adds is recovery, not choice.
    """

    def best(self) -> Masks:
        removed: dict[int, None] = {}
        assigned: set[int] = set()
        for length in (3, 2):
            for _, block in sorted(self._blocks(length), key=lambda pair: pair[0]):
                if assigned.isdisjoint(block):
                    removed[min(block[:2], key=self._single)] = None
                    assigned.update(block)
        rest = sorted(set(range(self.n_layers)) - set(removed), key=self._single)
        values = np.zeros(self.n_layers)
        values[[*removed, *rest]] = np.arange(self.n_layers, 0, -1)
        return self.space.top(values)

    def _blocks(self, length: int) -> list[tuple[float, list[int]]]:
        """Return distance and layers of each block of that length, without those that hold the last layer of a stream."""
        found = []
        in_order = [layer for stage in self.blocks.stages for layer in stage]
        for stream in dict.fromkeys(self.blocks.streams):
            chain = [layer for layer in in_order if self.blocks.streams[layer] == stream]
            for start in range(len(chain) - length):
                apart = distance(self.blocks.cosine, chain[start], length)
                if apart is not None:
                    found.append((apart, chain[start : start + length]))
        return found

    def _single(self, layer: int) -> float:
        return distance(self.blocks.cosine, layer, 1) or 0.0
