"""The sums of `Evaluator.evaluate` over the batches so far, in a file: a process that is killed does not lose them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.files import write_text


class KeptSums:
    """Keeps the sums of one call at a time; a call of the same masks and examples continues from them, to the bit.

    `seconds` is the least time between two writes of the file.
    """

    def __init__(self, path: Path, seconds: float = 30.0) -> None:
        self.path = path
        self.seconds = seconds
        self._written = time.monotonic()

    def begin(self, masks: np.ndarray, examples: Sequence[Any], batch_size: int) -> tuple[np.ndarray, int]:
        """Begin a call; return its sums so far, (3, m) float64 losses, metrics and divergences, and of how many examples."""
        self._call = json.dumps([masks.tolist(), [example.key for example in examples], batch_size])
        if self.path.is_file():
            with suppress(OSError, ValueError, LookupError, TypeError):  # damaged: all is scored again
                kept = json.loads(self.path.read_text())
                if kept["call"] == self._call:  # not another turn
                    return np.array(kept["sums"], dtype=np.float64).reshape(3, len(masks)), int(kept["examples"])
        return np.zeros((3, len(masks))), 0

    def write(self, sums: np.ndarray, examples: int) -> None:
        """Write the sums over the first `examples` examples, unless they were written less than `seconds` ago."""
        if time.monotonic() - self._written >= self.seconds:
            write_text(self.path, json.dumps({"call": self._call, "examples": examples, "sums": sums.tolist()}))
            self._written = time.monotonic()
