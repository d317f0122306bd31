"""Cache of the scores of masks, valid until something that they depend on changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

FULL_LOGITS = 4
"""For how many sets of examples the full model's logits are kept: 12.5 MB for 1,000 examples of VQAv2's 3,129 answers."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a mask.

    Attributes:
        loss, metric: Means over the examples.
        divergence: Mean over the examples; None unless requested.
    """

    loss: float
    metric: float
    divergence: float | None


class ScoreMemory:
    """Scores by examples and mask, and the full model's logits by examples.

    Everything is forgotten as soon as one of the tensors that scores depend on was written to, as an optimiser and
    `load_state_dict` do, or was replaced. torch counts writes, but not those through `tensor.data`.

    Args:
        sources: The tensors that scores depend on.
        limit: How many scores to keep.
    """

    def __init__(self, sources: Iterable[Tensor], limit: int) -> None:
        self.limit = limit
        self._sources = tuple(sources)
        self._version = self._read_version()
        self._scores: dict[tuple[int, bytes], Score] = {}
        self._logits: dict[tuple[int, int], list[Tensor]] = {}

    def _read_version(self) -> tuple[int, int]:
        writes = sum(0 if source.is_inference() else source._version for source in self._sources)
        return writes, hash(tuple(source.data_ptr() for source in self._sources))

    def refresh(self) -> bool:
        """Clear the cache if a source has changed since the last call, and return whether one has."""
        version = self._read_version()
        changed = version != self._version
        if changed:
            self.forget()
            self._version = version
        return changed

    def forget(self) -> None:
        """Clear the cache."""
        self._scores.clear()
        self._logits.clear()

    def find(self, keys: Iterable[tuple[int, bytes]], divergences: bool) -> dict[tuple[int, bytes], Score]:
        """Return the known scores of these keys, with `divergences` only those that have one."""
        known = {key: self._scores[key] for key in keys if key in self._scores}
        return {key: score for key, score in known.items() if not divergences or score.divergence is not None}

    def keep(self, scores: Mapping[tuple[int, bytes], Score]) -> None:
        """Add scores; clear the cache first if there is no room for both."""
        if len(self._scores) + len(scores) > self.limit:
            self._scores.clear()
        self._scores.update(list(scores.items())[-self.limit :])

    def logits(self, key: tuple[int, int]) -> list[Tensor] | None:
        """Return the full model's logits, batch by batch, for a set of examples and a batch size."""
        return self._logits.get(key)

    def keep_logits(self, key: tuple[int, int], logits: list[Tensor]) -> None:
        """Add logits, and forget the oldest if there are too many."""
        self._logits[key] = logits
        while len(self._logits) > FULL_LOGITS:
            del self._logits[next(iter(self._logits))]
