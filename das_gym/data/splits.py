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
        left_out: One line for each bad example that `on_bad_example="skip"` left out.
    """

    train: Sequence[Example]
    reward: Sequence[Example]
    test: Sequence[Example]
    left_out: tuple[str, ...] = ()
