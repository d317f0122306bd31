"""The three parts of a data set, whatever its examples are, and how one is divided by what its examples share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

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


@dataclass(frozen=True, eq=False)
class Mapped(Sequence[Example]):
    """Examples that are made when they are asked for.

    Attributes:
        items: What they are made of.
        make: Makes one.
    """

    items: Sequence[Any]
    make: Callable[[Any], Example]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Mapped[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Mapped[Example]:
        if isinstance(index, slice):
            return Mapped(self.items[index], self.make)
        return self.make(self.items[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self.make, self.items)


def hash_order(names: Iterable[str]) -> list[str]:
    """Different names by the 8-byte BLAKE2b hash of each: the same order on every machine.

    Args:
        names: Several times the same is no harm.
    """

    def digest(name: str) -> bytes:
        return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(set(names), key=lambda name: (digest(name), name))


def share_of(share: float, count: int) -> int:
    """So many of `count` things, rounded, at least one."""
    return max(1, round(share * count))


def linked_groups(keys: Sequence[Sequence[str]]) -> list[int]:
    """The group of each example: those that share a key, directly or by way of others, are in one.

    Args:
        keys: Of each example; one without keys is a group of its own.

    Returns:
        A number for each example, 0 or more.
    """
    parents = list(range(len(keys)))

    def root_of(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first_with: dict[str, int] = {}
    for number, own in enumerate(keys):
        for key in own:
            parents[root_of(number)] = root_of(first_with.setdefault(key, number))
    return [root_of(number) for number in range(len(keys))]
