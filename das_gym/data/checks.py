"""Bad examples: raise at the first one, or leave them out and keep a line about each."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from filelock import FileLock

from das_gym.data.cache import cache_folder
from das_gym.data.images import ImageFile, ImageSource
from das_gym.files import replacing
from das_gym.runs import progress

Example = TypeVar("Example")

POLICIES = ("raise", "skip")
"""What `on_bad_example` may be."""

WAY_OUT = 'pass on_bad_example="skip" to leave out what is bad'

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar shows."""

_VERDICTS = "readable-images-1.npy"
_UNREADABLE = (FileNotFoundError, ValueError)


class BadExamples:
    """What a reader does with a bad example, and what it has left out so far.

    A reader makes one for each data set that it reads, tells it of every bad entry with `report`, goes on with the next
    entry where that returns, passes what is left through `drop_broken`, and puts `lines` into `Splits.left_out`. A file
    that cannot be read as a whole is no bad example: that always raises.

    Args:
        on_bad_example: `raise` or `skip`.

    Raises:
        ValueError: `on_bad_example` is neither.
    """

    def __init__(self, on_bad_example: str = "raise") -> None:
        if on_bad_example not in POLICIES:
            raise ValueError(f"on_bad_example={on_bad_example!r} is unknown; choose one of {', '.join(POLICIES)}")
        self.skips = on_bad_example == "skip"
        self._lines: list[str] = []

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each example that was left out."""
        return tuple(self._lines)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Keep lines about entries that an earlier reading left out."""
        self._lines.extend(lines)

    def report(self, error: Exception) -> None:
        """Raise the error with the way out added, or keep its text and return.

        Args:
            error: A ValueError or FileNotFoundError whose text names file and entry.
        """
        if self.skips:
            self._lines.append(str(error))
        else:
            text = str(error)
            raise type(error)(text if WAY_OUT in text else f"{text}; or {WAY_OUT}") from error.__cause__

    def broken_images(self, images: Iterable[ImageSource]) -> dict[str, Exception]:
        """The images that cannot be used, by key.

        With `skip`, every image is decoded, once: what was readable is remembered in the cache folder until it changes.
        With `raise`, files are only looked for, by listing their folders; what is damaged shows when it is opened.

        Args:
            images: The images; those that occur several times are looked at once.

        Returns:
            The error of each image that is missing or, with `skip`, cannot be decoded.
        """
        distinct = {image.key: image for image in images}
        return _undecodable(distinct) if self.skips else _missing(distinct)

    def drop_broken(
        self, examples: Sequence[Example], images: Callable[[Example], Sequence[ImageSource]], name: Callable[[Example], str]
    ) -> list[Example]:
        """The examples whose images can be used; the others are left out or raise.

        Args:
            examples: What was read.
            images: The images of an example.
            name: Names an example and its file, such as `dev.json: identifier dev-1-2-0`.

        Returns:
            The examples that are left, in order.

        Raises:
            FileNotFoundError: With `raise`, an image is missing; the text says how many of how many are.
        """
        broken = self.broken_images(image for example in examples for image in images(example))
        if not broken:
            return list(examples)
        total = len({image.key for example in examples for image in images(example)})
        kept = []
        for example in examples:
            error = next((broken[image.key] for image in images(example) if image.key in broken), None)
            if error is None:
                kept.append(example)
            else:
                self.report_broken(name(example), error, len(broken), total)
        return kept

    def report_broken(self, name: str, error: Exception, broken: int, total: int) -> None:
        """Report an example whose image is in `broken_images`; with `raise`, which only looks for files, tell how many miss.

        Args:
            name: Names example and file.
            error: What `broken_images` says of its image.
            broken: Images in `broken_images`.
            total: Images that were looked at.
        """
        counted = "" if self.skips else f" ({broken} of {total} images are missing); put them there"
        self.report(type(error)(f"{name}: {error}{counted}"))

    def require(self, examples: Sized, what: str) -> None:
        """Refuse a split of which nothing is left.

        Args:
            examples: What is left.
            what: Names split and file, such as `the dev split (dev.json)`.

        Raises:
            ValueError: `examples` is empty.
        """
        if len(examples):
            return
        first = f"; the first of {len(self._lines)} left out: {self._lines[0]}" if self._lines else ""
        raise ValueError(f"{what} holds no usable example, and needs at least one{first}")


def check_fields(entry: object, fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Refuse an entry of a JSON file that lacks a field or has a value of another type.

    Args:
        entry: The entry.
        fields: What it needs: the type of each field, or several.
        where: Names file and entry.

    Raises:
        ValueError: says what it has.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r:.60}; it must be an object with {', '.join(fields)}")
    for name, allowed in fields.items():
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        if name not in entry:
            raise ValueError(
                f"{where} has no {name!r}; it needs {', '.join(fields)}, and has {', '.join(entry) or 'nothing'}"
            )
        if type(entry[name]) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where} has {name}={entry[name]!r:.60}; it must be of type {wanted}")


def _missing(images: dict[str, ImageSource]) -> dict[str, Exception]:
    """Errors of image files that are not in their folder; every folder is listed once."""
    files = {key: os.path.split(image.path) for key, image in images.items() if isinstance(image, ImageFile)}
    there: dict[str, set[str]] = {folder: set() for folder, _ in files.values()}
    for folder, names in there.items():
        with contextlib.suppress(OSError), os.scandir(folder) as listing:
            names.update(entry.name for entry in listing)
    absent = [key for key, (folder, name) in files.items() if name not in there[folder]]
    return {key: FileNotFoundError(f"there is no image {key}") for key in absent}


def _undecodable(images: dict[str, ImageSource]) -> dict[str, Exception]:
    """Errors of images that cannot be decoded; those known from before are not decoded again."""
    broken: dict[str, Exception] = {}
    prints: dict[str, int] = {}
    for key, image in images.items():
        try:
            digest = hashlib.blake2b(f"{key}\n{image.stamp()}".encode(), digest_size=8).digest()
            prints[key] = int.from_bytes(digest, "little")
        except (OSError, ValueError) as error:
            broken[key] = FileNotFoundError(f"there is no image {key} ({type(error).__name__})")
    known = np.isin(np.fromiter(prints.values(), np.uint64, len(prints)), _read_verdicts())
    unknown = [key for key, seen in zip(prints, known, strict=True) if not seen]
    readable: list[int] = []
    try:
        for key, verdict in _decode_all([images[key] for key in unknown]):
            if verdict is None:
                readable.append(prints[key])
            else:
                broken[key] = verdict
    finally:  # also of a run that was interrupted
        _add_verdicts(readable)
    return broken


def _decode_all(images: list[ImageSource]) -> Iterator[tuple[str, Exception | None]]:
    """Key and error of each image, decoded by as many threads as there are cores."""
    many = len(images) >= MANY_IMAGES
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(len(images), "checking images", unit="image") if many else contextlib.nullcontext() as bar,
    ):
        try:
            for image, error in zip(images, pool.map(_decode_error, images), strict=True):
                yield image.key, error
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode_error(image: ImageSource) -> Exception | None:
    try:
        image.open()
    except _UNREADABLE as error:
        return type(error)(str(error).partition("; ")[0])  # what is wrong, without the advice: it is being left out
    return None


def _read_verdicts() -> np.ndarray:
    """Fingerprints, (n,) uint64, of images that were decoded before without an error."""
    try:
        with (cache_folder() / _VERDICTS).open("rb") as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none yet, or damaged: images are decoded again
        return np.empty(0, np.uint64)


def _add_verdicts(readable: list[int]) -> None:
    """Remember readable images; a cache folder that cannot be written to costs decoding them again, no more."""
    if not readable:
        return
    path = cache_folder() / _VERDICTS
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), replacing(path) as part, part.open("wb") as file:
            np.save(file, np.union1d(_read_verdicts(), np.array(readable, np.uint64)))
