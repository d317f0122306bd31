"""Cache of the full model's hidden vectors from one call to the next: every mask starts on its path.

It also keeps the states after the units of a vision tower: many masks of the decoder begin with each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from das_gym.models.base import bytes_of


class TrunkMemory:
    """The full model's results on some examples, stage by stage, as far as memory allows.

    The first results stay until `forget`. Masks walk over the same examples again and again in the same order, so a cache
    that drops the least recently used entry would drop each one before it is needed again.

    Args:
        max_bytes: How much to keep; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[int, Any], Any] = {}
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

    def known(self, batch: int, what: Any) -> Any:
        """Return a kept result on a batch, or None."""
        return self._kept.get((batch, what))

    def of(self, batch: int, what: Any, compute: Callable[[], Any]) -> Any:
        """Return a kept result, or compute it, and keep it if there is room.

        Args:
            batch: Which batch of the examples.
            what: Which layer; -1 = the state before stage 0; bits of a vision tower's units = the state after them.
            compute: Returns a tensor or a `State`.
        """
        key = (batch, what)
        if key in self._kept:
            return self._kept[key]
        result = compute()
        size = bytes_of(result)
        if self.bytes + size <= self.max_bytes:
            self._kept[key] = result
            self.bytes += size
        return result
