"""The way down the unskipped model, kept from one call to the next: every mask starts on it.

So is what masks of a vision tower lead to, where a model has such units: many masks of the decoder begin with each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from das_gym.models.base import bytes_of


class TrunkMemory:
    """What the unskipped model makes of some examples, stage by stage, as far as memory allows.

    What was kept first stays until `forget`: masks walk over the same examples again and again in the same order, and
    dropping the least recently used would drop everything before it is wanted again.

    Args:
        max_bytes: How much to keep; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[int, Any], Any] = {}
        self._examples: int | None = None

    def forget(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0

    def start(self, examples: int) -> None:
        """Examples of that hash are scored from now on; what was kept of others goes.

        Args:
            examples: Their hash.
        """
        if examples != self._examples:
            self.forget()
        self._examples = examples

    def known(self, batch: int, what: Any) -> Any:
        """What is kept of a batch; None = nothing."""
        return self._kept.get((batch, what))

    def of(self, batch: int, what: Any, compute: Callable[[], Any]) -> Any:
        """What `compute()` returned the first time, if there was room for it.

        Args:
            batch: Which batch of the examples.
            what: Which layer; -1 = the state before stage 0; bits of a vision tower's units = the state behind them.
            compute: Gives a tensor or a `State`.
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
