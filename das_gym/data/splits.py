"""The three parts of a data set: how to divide data so that equal images stay together, and what is in two parts.

Images may hold the same bytes under different names. Reading all 20 GB of VQAv2 to find them would take minutes. Of images
of equal size, the last few kilobytes are compared first, and only images that agree in these are read as a whole. The hashes
are kept in the cache folder, so that later starts read no image again.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from das_gym.data.images import ImageFile, ImageSource, content_digest
from das_gym.data.rows import CellImage
from das_gym.files import cache_folder, read_json, write_json

Example = TypeVar("Example", covariant=True)

FILE_PARTS = ("train", "val", "test")
"""What files call the parts of a data set; val is the reward split."""

REWARD_SHARE = TEST_SHARE = 0.1
"""Shares of the groups of examples that become the reward and the test split, where no file is for that."""

VALIDATION_SHARE = 0.5
"""Share of the groups of a validation file that become the reward split, where it also has to serve as another split."""

TAIL_BYTES = 4096
"""Bytes at the end of an image that are compared first."""

THREADS = 8
"""Files are read by this many threads: a network file system takes milliseconds for each."""

StoredImage = ImageFile | CellImage


@dataclass(frozen=True)
class Splits(Generic[Example]):
    """The examples of a data set in three splits, which should share no image.

    Where das_gym divides a data set, it keeps images with equal content in one split. If files for train, val and test share
    an image, reading them is a ValueError, or with `on_bad_example="skip"` leaves its examples out. Published splits stay as
    they are, with a warning.

    Attributes:
        train, reward, test: Examples to train on, to score masks on, and for the scores that are reported.
        left_out: Lines about the bad entries that `on_bad_example="skip"` skipped.
    """

    train: Sequence[Example]
    reward: Sequence[Example]
    test: Sequence[Example]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LazySequence(Sequence[Example]):
    """Examples that are built on access, so that hundreds of thousands take little memory."""

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


def rounded_share(share: float, count: int) -> int:
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

    Examples with the same name in `groups` stay together. Groups are taken in `hash_order`.
    """
    order = hash_order(groups)
    if len(order) <= len(shares):
        return None
    parts: list[list[Any]] = []
    for share in shares:
        chosen = frozenset(order[: rounded_share(share, len(set(groups)))])
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


@dataclass(slots=True)
class _Record:
    """Size and hashes of an image: of its last `TAIL_BYTES` and of all bytes, empty where they were not needed."""

    fingerprint: str
    size: int
    tail: str = ""
    whole: str = ""


def content_keys(images: Iterable[ImageSource]) -> dict[str, str]:
    """Return for the key of each image a text that is the same for images with the same bytes.

    It is the image's own key, unless another image has the same size and ending: then it is a hash of all bytes. Images that
    cannot be read keep their own key, and so do images that are neither files nor cells of a table.
    """
    # Many examples share an image object: keys are made once for each.
    distinct = {image.key: image for image in {id(image): image for image in images}.values()}
    stored = {
        key: image
        for key, image in distinct.items()
        if isinstance(image, ImageFile) or (isinstance(image, CellImage) and not image.digest)
    }
    contents = {key: key for key in distinct}
    if len(stored) < 2:
        return contents
    path = _cache_path(stored.values())
    before = _read_cache(path)
    records = _measure(stored, before)
    same_size = _repeated({key: record.size for key, record in records.items() if record.size})
    for key, digest in _digests({key: stored[key] for key in same_size if not records[key].tail}, TAIL_BYTES).items():
        records[key].tail = digest
    same_tail = _repeated({key: (records[key].size, records[key].tail) for key in same_size if records[key].tail})
    for key, digest in _digests({key: stored[key] for key in same_tail if not records[key].whole}).items():
        records[key].whole = digest
    after = before | {key: [record.fingerprint, record.size, record.tail, record.whole] for key, record in records.items()}
    if path is not None and after != before:
        with suppress(OSError):  # without a writable cache, images are read again the next time
            write_json(path, after, indent=None)
    return contents | {key: f"content {records[key].whole}" for key in same_tail if records[key].whole}


def _cache_path(images: Iterable[StoredImage]) -> Path | None:
    folder = os.path.commonpath({os.path.dirname(image.path.absolute()) for image in images})  # noqa: PTH120  (much faster)
    name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    try:
        return cache_folder() / "images" / f"{name}.json"
    except ValueError:
        return None


def _read_cache(path: Path | None) -> dict[str, list[Any]]:
    if path is None or not path.is_file():
        return {}
    with suppress(OSError, ValueError):
        return dict(read_json(path))
    return {}


def _measure(images: Mapping[str, StoredImage], before: Mapping[str, list[Any]]) -> dict[str, _Record]:
    def measure(image: StoredImage) -> _Record:
        fingerprint = image.fingerprint()
        known = before.get(image.key)
        return _Record(*known) if known is not None and known[0] == fingerprint else _Record(fingerprint, image.size())

    return _in_threads(measure, images)


def _digests(images: Mapping[str, StoredImage], last: int | None = None) -> dict[str, str]:
    return _in_threads(lambda image: content_digest(image.read(last)), images)


def _in_threads(work: Callable[[StoredImage], Any], images: Mapping[str, StoredImage]) -> dict[str, Any]:
    """Return what `work` returns for each image, by key, without the images that cannot be read."""

    def do(block: Sequence[str]) -> dict[str, Any]:
        results = {}
        for key in block:
            with suppress(OSError, ValueError):  # a missing or damaged image is reported when it is opened
                results[key] = work(images[key])
        return results

    keys = list(images)
    with ThreadPoolExecutor(THREADS) as pool:
        blocks = list(pool.map(do, (keys[start::THREADS] for start in range(THREADS))))
    found = {key: result for block in blocks for key, result in block.items()}
    return {key: found[key] for key in keys if key in found}


def _repeated(values: Mapping[str, Hashable]) -> list[str]:
    keys_of: defaultdict[Hashable, list[str]] = defaultdict(list)
    for key, value in values.items():
        keys_of[value].append(key)
    return [key for keys in keys_of.values() if len(keys) > 1 for key in keys]


def warn_of_shared_images(parts: Mapping[str, Sequence[Any]], contents: Mapping[str, str]) -> None:
    """Warn where two of the parts of a data set have images with the same content, as `content_keys` gives it."""
    names = list(parts)
    images = {name: {contents[i.key]: i.key for example in parts[name] for i in example.images} for name in names}
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            shared = [content for content in images[first] if content in images[second]]
            if shared:
                one = images[first][shared[0]]
                other = images[second][shared[0]]
                example = one if one == other else f"{one} is {other}"
                warnings.warn(
                    f"{len(shared)} images of the {first} split are in the {second} split too, such as {example}: scores on "
                    f"{second} look better than they are. Remove their examples from one of the two",
                    stacklevel=4,
                )


def warn_of_repeated_questions(
    examples: Sequence[Any], question: Callable[[Any], Hashable], contents: Mapping[str, str]
) -> None:
    """Warn where the test split asks the same question about the same images more than once."""
    first: dict[Hashable, str] = {}
    repeated: list[tuple[str, str]] = []
    for example in examples:
        asked = (tuple(contents[image.key] for image in example.images), question(example))
        before = first.setdefault(asked, example.key)
        if before != example.key:
            repeated.append((before, example.key))
    if repeated:
        warnings.warn(
            f"{len(repeated)} of {len(examples)} test examples repeat the question of another about the same image, such as "
            f"{repeated[0][1]}, which repeats {repeated[0][0]}: they count twice in every score. Remove them",
            stacklevel=4,
        )
