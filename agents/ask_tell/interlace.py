"""INTERLACE's choice of layers: of three that follow each other, one of the first two goes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from das_gym.agents.ask_tell.blocks import OfBlocks, distance

from das_gym.problem.budget import Masks


class Interlace(OfBlocks):
    """Triplets of layers (INTERLACE, Madinei et al., arXiv 2511.19676, CVPR 2026): one mask.

    Triplets of consecutive layers are ranked by the cosine of what enters them and what leaves them, over tokens, the most
    alike first; those that share a layer with one taken before are passed over. Of the first two layers of each, the one
    whose own input and output are more alike is skipped, until the budget is kept. As in the released code
    (github.com/pmadinei/Interlace, which also says this), pairs follow where triplets do not suffice, one of each likewise,
    and the last layer is in neither. Ours: where pairs do not suffice either, the layers left follow by their own
    likeness; by cost, a layer that saves nothing is passed over; METER's triplets lie within its streams and are ranked
    together. INTERLACE then trains the other one of the first two and freezes the third: that is recovery, not choice.
    """

    def best(self) -> Masks:
        """The mask."""
        values = np.zeros(self.n_layers)
        for rank, layer in enumerate(self._order()):
            values[layer] = self.n_layers - rank
        return self.space.top(values)

    def _order(self) -> list[int]:
        """All layers, in the order in which they go."""
        gone: dict[int, None] = {}
        assigned: set[int] = set()
        for length in (3, 2):
            for _, block in sorted(self._blocks(length), key=lambda pair: pair[0]):
                if assigned.isdisjoint(block):
                    gone[min(block[:2], key=self.own)] = None
                    assigned.update(block)
        return [*gone, *sorted(set(range(self.n_layers)) - set(gone), key=self.own)]

    def _blocks(self, length: int) -> Iterator[tuple[float, list[int]]]:
        """Distance and layers of every block of that length but those that hold the last layer of a stream."""
        for stream in dict.fromkeys(self.blocks.streams):
            chain = self.blocks.chain(stream)
            for start in range(len(chain) - length):
                apart = distance(self.blocks.cosine, chain[start], length)
                if apart is not None:
                    yield apart, chain[start : start + length]
