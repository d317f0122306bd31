"""Caches from one call to the next: scores of masks, and the full model's hidden vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from das_gym.models.base import bytes_of

FULL_LOGITS = 4
"""For how many sets of examples the full model's logits are kept: 12.5 MB for 1,000 examples of VQAv2's 3,129 answers."""

LOGITS_BYTES = 2**28
"""Most bytes of these logits for a set of examples: a language model has a vocabulary for each token of each answer."""

Key = tuple[int, bytes]
"""The hash of some examples, and the bits of a mask."""

Batch = tuple[int, int]
"""The place of a batch's first example, and its number of examples."""


class Score(NamedTuple):
    """Means over the examples under a mask; the divergence is None unless requested."""

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

    def __init__(self, sources: Iterable[Tensor], limit: int = 100_000) -> None:
        self.limit = limit
        self._sources = tuple(sources)
        self._scores: dict[Key, Score] = {}
        self._logits: dict[tuple[int, int], list[Tensor]] = {}
        self._version: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Clear the cache if a source has changed since the last call, and return whether one has."""
        # torch raises `_version` with every in-place write; an inference tensor has none, but cannot be trained either.
        writes = sum(0 if source.is_inference() else source._version for source in self._sources)
        before = self._version
        self._version = (writes, hash(tuple(source.data_ptr() for source in self._sources)))
        if before == self._version:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """Clear the cache."""
        self._scores.clear()
        self._logits.clear()

    def find(self, keys: Iterable[Key], divergences: bool) -> dict[Key, Score]:
        """Return the known scores of these keys, with `divergences` only those that have one."""
        known = {key: self._scores[key] for key in keys if key in self._scores}
        return {key: score for key, score in known.items() if not divergences or score.divergence is not None}

    def keep(self, scores: Mapping[Key, Score]) -> None:
        """Add scores; clear the cache first if there is no room for both."""
        if len(self._scores) + len(scores) > self.limit:  # all at once: searches rarely come back to old masks
            self._scores.clear()
        self._scores.update(list(scores.items())[-self.limit :])

    def logits(self, key: tuple[int, int]) -> list[Tensor] | None:
        """Return the full model's logits, batch by batch, for a hash of examples and a batch size; None if unknown."""
        return self._logits.get(key)

    def keep_logits(self, key: tuple[int, int], logits: list[Tensor]) -> None:
        """Add logits, and forget the oldest if there are too many."""
        self._logits[key] = logits
        if len(self._logits) > FULL_LOGITS:
            del self._logits[next(iter(self._logits))]


class TrunkMemory:
    """The full model's results on some examples, stage by stage, as far as memory allows: every mask starts on its path.

    It also keeps the states after the units of a vision tower: many masks of the decoder begin with each. The first results
    stay until `forget`. Masks walk over the same examples again and again in the same order, so a cache that drops the least
    recently used entry would drop each one before it is needed again.

    Args:
        max_bytes: How much to keep; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[Batch, Any], Any] = {}
        self._examples: int | None = None

    def forget(self) -> None:
        """Clear the cache."""
        self._kept.clear()
        self.bytes = 0

    def start(self, examples: int) -> None:
        """Set the hash of the examples that are scored from now on, and clear cached results on other examples."""
        if examples != self._examples:
            self.forget()
        self._examples = examples

    def known(self, batch: Batch, what: Any) -> Any:
        """Return a kept result on a batch, or None."""
        return self._kept.get((batch, what))

    def get_or_compute(self, batch: Batch, what: Any, compute: Callable[[], Any]) -> Any:
        """Return a kept result, or compute it, and keep it if there is room.

        `what` is which layer; -1 = the state before stage 0; bits of a vision tower's units = the state after them.
        """
        if (batch, what) in self._kept:
            return self._kept[batch, what]
        result = compute()
        size = bytes_of(result)
        if self.bytes + size <= self.max_bytes:
            self._kept[batch, what] = result
            self.bytes += size
        return result
