"""The three parts of a data set, and how to divide data so that examples with a common image stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

Example = TypeVar("Example", covariant=True)


@dataclass(frozen=True)
class Splits(Generic[Example]):
    """Examples to train on, to score masks on, and to report. No image should be in two of them.

    Readers compare the content of images. Where das_gym divides a data set, equal images stay together. Files for train, val
    and test that share an image are an error, which `on_bad_example="skip"` resolves. The published splits of VQAv2, NLVR2,
    SNLI-VE, ScienceQA and Karpathy's captions stay as they are, with a warning.

    Example:
        >>> from das_gym import Splits
        >>> len(Splits(train=["a", "b"], reward=["c"], test=["d"]).train)
        2

    Attributes:
        train, reward, test: The examples.
        left_out: Lines about the bad entries that `on_bad_example="skip"` skipped.
    """

    train: Sequence[Example]
    reward: Sequence[Example]
    test: Sequence[Example]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LazySequence(Sequence[Example]):
    """Examples that are built on access, so that hundreds of thousands take little memory.

    Attributes:
        items: What they are built from.
        make: Builds one.
    """

    items: Sequence[Any]
    make: Callable[[Any], Example]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | LazySequence[Example]:
        if isinstance(index, slice):
            return LazySequence(self.items[index], self.make)
        return self.make(self.items[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self.make, self.items)


def hash_order(names: Iterable[str]) -> list[str]:
    """Return the distinct names in the order of their 8-byte BLAKE2b hashes: the same on every machine."""

    def digest(name: str) -> bytes:
        return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(set(names), key=lambda name: (digest(name), name))


def share_of(share: float, count: int) -> int:
    """Return a share of `count`, rounded, at least one."""
    return max(1, round(share * count))


def linked_groups(keys: Sequence[Sequence[str]]) -> list[int]:
    """Return a group number for each example. Examples that share a key, directly or through others, are in one group."""
    parents = list(range(len(keys)))  # union-find: each group is a tree

    def root_of(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]  # halve the path, for the next search
            number = parents[number]
        return number

    # Joining each example with the first that has its key is enough: all with that key are then in one tree.
    first_with: dict[str, int] = {}
    for number, own in enumerate(keys):
        for key in own:
            parents[root_of(number)] = root_of(first_with.setdefault(key, number))
    return [root_of(number) for number in range(len(keys))]
