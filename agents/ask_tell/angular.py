"""One contiguous block goes: that whose input and output point most nearly the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.blocks import OfBlocks, distance

from das_gym.problem.budget import Masks


class Angular(OfBlocks):
    """The contiguous block of least angular distance (Gromov et al., arXiv 2403.17887): one mask.

    Of all blocks of n layers, that of the least arccos(cos(h_in, h_out)) / pi at the last token, averaged over examples.
    As it stands in the paper, n is given. By cost, each block is as long as the budget needs from its first layer on, and
    the least distance of those is taken. Where layers run side by side, as METER's text and image layers do, a block is
    one of whole stages, and its distance the mean over its streams; of its last stage no more is skipped than the budget
    needs. A block does not run from one tower into another (vision layers into the decoder's).
    """

    def best(self) -> Masks:
        """The mask; where no block is enough, that of the layers of least distance each."""
        found = list(self._candidates())
        if found:
            return min(found, key=lambda pair: pair[0])[1]
        return self.space.top(np.array([-(distance(self.blocks.angular, i, 1) or 0.0) for i in range(self.n_layers)]))

    def _candidates(self) -> Iterator[tuple[float, Masks]]:
        """Distance and mask of the shortest block from each stage on that is enough."""
        stages, streams = self.blocks.stages, self.blocks.streams
        nothing = np.zeros(self.n_layers, dtype=bool)
        if self.space.contains(nothing[None])[0]:
            yield 0.0, nothing
        for first, stage in enumerate(stages):
            mask = nothing.copy()
            for length, last in enumerate(stages[first:], start=1):
                if {streams[i] for i in last} != {streams[i] for i in stage}:
                    break
                enough = self._enough(mask, last)
                if enough is not None:
                    apart = [distance(self.blocks.angular, layer, length) for layer in stage]
                    yield float(np.mean([each for each in apart if each is not None])), enough
                    break
                mask[list(last)] = True

    def _enough(self, mask: Masks, stage: Any) -> Masks | None:
        """The mask with as few layers of a stage as the budget needs, those of least distance first; None = not enough."""
        mask = mask.copy()
        for layer in sorted(stage, key=lambda i: distance(self.blocks.angular, i, 1) or 0.0):
            mask[layer] = True
            if self.space.contains(mask[None])[0]:
                return mask
        return None
