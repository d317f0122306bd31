"""The three parts of a data set, and how to divide data so that examples with a common image stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

Example = TypeVar("Example", covariant=True)

FILE_PARTS = ("train", "val", "test")
"""What files call the parts of a data set; val is the reward split."""

REWARD_SHARE = TEST_SHARE = 0.1
"""Shares of the groups of examples that become the reward and the test split, where no file is for that."""

VALIDATION_SHARE = 0.5
"""Share of the groups of a validation file that become the reward split, where it also has to serve as another split."""


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


def split_off(
    examples: Sequence[Any], groups: Sequence[str], shares: Sequence[float]
) -> tuple[list[list[Any]], list[Any]] | None:
    """Return a share of the groups of examples for each of the shares, and the rest; None where the groups are too few.

    Args:
        examples: The examples.
        groups: The name of each example's group; examples of one group stay together.
        shares: Shares of the groups. Groups are taken in `hash_order`.
    """
    order = hash_order(groups)
    if len(order) <= len(shares):
        return None
    parts: list[list[Any]] = []
    for share in shares:
        chosen = frozenset(order[: share_of(share, len(set(groups)))])
        order = order[len(chosen) :]
        parts.append([example for example, group in zip(examples, groups, strict=True) if group in chosen])
    left = frozenset(order)
    return parts, [example for example, group in zip(examples, groups, strict=True) if group in left]


def fill_parts(
    parts: Mapping[str, Sequence[Any]], divide: Callable[[Sequence[Any], Sequence[float]], tuple[list[list[Any]], list[Any]]]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Return the examples of train, reward and test.

    Where a part is missing, examples of another take its place: a tenth of train for a missing val; half of val for a
    missing train or test; of a single part, a tenth each.

    Args:
        parts: `train`, `val` and `test`, or one of any name.
        divide: Takes shares from examples: returns those of each share, and the rest.
    """
    train, reward, test = (parts.get(name, ()) for name in FILE_PARTS)
    if len(parts) == 1:
        (test, reward), train = divide(next(iter(parts.values())), (TEST_SHARE, REWARD_SHARE))
    elif not reward:
        (reward,), train = divide(train, (REWARD_SHARE,))
    elif not test:
        (reward,), test = divide(reward, (VALIDATION_SHARE,))
    elif not train:
        (reward,), train = divide(reward, (VALIDATION_SHARE,))
    return train, reward, test
