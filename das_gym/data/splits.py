"""The three parts of a data set, whatever its examples are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Example = TypeVar("Example", covariant=True)


@dataclass(frozen=True)
class Splits(Generic[Example]):
    """Examples to train on, to score masks on, and to report; no image is in two of them.

    Attributes:
        train, reward, test: The examples.
        left_out: Lines about the bad entries that `on_bad_example="skip"` left out.
        left_out_examples: How many examples that comes to; None = one for each line.
    """

    train: Sequence[Example]
    reward: Sequence[Example]
    test: Sequence[Example]
    left_out: tuple[str, ...] = ()
    left_out_examples: int | None = None

    @property
    def left_out_count(self) -> int:
        """How many examples were left out."""
        return len(self.left_out) if self.left_out_examples is None else self.left_out_examples
