"""Bad examples: raise at the first one, or skip them and keep a line about each.

`decode_errors` and `require_readable` find the images that cannot be decoded, before a long computation needs them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from das_gym.commands.progress import progress
from das_gym.data.decoding import HINT as IMAGE_HINT
from das_gym.data.duplicates import content_keys, warn_of_repeated_questions, warn_of_shared_images
from das_gym.data.images import FolderListings, ImageFile, ImageSource
from das_gym.data.splits import Splits

Example = TypeVar("Example")


class Illustrated(Protocol):
    """An example with images."""

    @property
    def images(self) -> Sequence[ImageSource]:
        """Its images; empty if it has none."""


IllustratedExample = TypeVar("IllustratedExample", bound=Illustrated)

POLICIES = ("raise", "skip")
"""Values of `on_bad_example`."""

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar is shown."""

HINT = 'Correct it, or leave such examples out: on_bad_example="skip" (`on_bad_example=skip` on a command line)'


class BadExamples:
    """The policy for bad examples, and a record of those skipped so far.

    A reader makes one per data set, turns entries into examples with `parse`, removes those without a usable image with
    `drop_broken`, and ends with `splits`. A file that cannot be read at all always raises.

    Example:
        >>> from das_gym.data.bad_examples import BadExamples
        >>> bad = BadExamples("skip")
        >>> bad.parse([("line 1", "3"), ("line 2", "x")], lambda entry, where: int(entry))
        [3]
        >>> len(bad.lines)
        1
    """

    def __init__(self, on_bad_example: str = "raise") -> None:
        if on_bad_example not in POLICIES:
            raise ValueError(f"unknown `on_bad_example`: got {on_bad_example!r}, expected {' or '.join(POLICIES)}")
        self.skips = on_bad_example == "skip"
        self.lines: list[str] = []

    def splits(
        self,
        train: Sequence[IllustratedExample],
        reward: Sequence[IllustratedExample],
        test: Sequence[IllustratedExample],
        question: Callable[[Any], Hashable],
        contents: Mapping[str, str] | None = None,
    ) -> Splits[IllustratedExample]:
        """Return the data set, with lines about the skipped examples.

        Warn of images that are in two splits, and of test examples that repeat the `question` of another. `contents` are
        the `content_keys` of all images, if they are known.
        """
        parts = {"train": train, "reward": reward, "test": test}
        if contents is None:
            contents = content_keys(image for part in parts.values() for e in part for image in e.images)
        warn_of_shared_images(parts, contents)
        warn_of_repeated_questions(test, question, contents)
        return Splits(train, reward, test, tuple(self.lines))

    @property
    def last_skipped(self) -> str:
        """A sentence to append to an error that skipped examples may have caused; empty where none was skipped."""
        return f". {len(self.lines)} entries were skipped, the last because: {self.lines[-1]}" if self.lines else ""

    def report(self, error: Exception) -> None:
        """Raise an error, whose message names file and entry, with a hint; or keep its message and skip the entry."""
        if not self.skips:
            raise type(error)(f"{error}. {HINT}") from error.__cause__  # the reader's own error would be shown twice
        self.lines.append(str(error))

    def parse(self, entries: Iterable[tuple[str, Any]], make: Callable[[Any, str], Example | None]) -> list[Example]:
        """Return the examples that `make` makes of entries and their places, and report bad ones.

        It raises ValueError for a bad entry, and returns None for one that is left out on purpose.
        """
        made = []
        for where, entry in entries:
            try:
                example = make(entry, where)
            except ValueError as error:
                self.report(error)
                continue
            if example is not None:
                made.append(example)
        return made

    def _broken_images(self, images: Iterable[ImageSource]) -> dict[str, Exception]:
        """Return the errors of the images that cannot be used, by key.

        With `skip`, every image is decoded. With `raise`, only missing files are found; damage is reported when an image is
        opened.
        """
        distinct = {image.key: image for image in images}
        listings = FolderListings()
        if self.skips:  # without the advice: the example is being skipped
            return {key: type(error)(str(error).removesuffix(f". {IMAGE_HINT}")) for key, error in decode_errors(distinct)}
        # On network file systems, a listing is much faster than asking for each of 100,000 files.
        files = [image for image in distinct.values() if isinstance(image, ImageFile) and not listings.has(image.path)]
        return {file.key: FileNotFoundError(f"the image {file.key} does not exist") for file in files}

    def drop_broken(
        self, examples: Sequence[IllustratedExample], source: str, name: Callable[[Any], str] = attrgetter("key")
    ) -> list[IllustratedExample]:
        """Return the examples whose `image` or `images` can be used; report the others, and raise where none is left.

        Errors name `source`, the file, and the example by `name`.
        """
        broken = self._broken_images(image for example in examples for image in example.images)
        kept = []
        for example in examples:
            error = next((broken[image.key] for image in example.images if image.key in broken), None)
            if error is None:
                kept.append(example)
                continue
            counted = "" if self.skips else f" ({len(broken)} images are missing)"
            self.report(type(error)(f"{source}: {name(example)}: {error}{counted}"))
        self.require(kept, source)
        return kept

    def require(self, examples: Sized, source: str) -> None:
        """Raise ValueError where nothing is left of a part of the data."""
        if not len(examples):
            raise ValueError(f"{source} holds no usable example, expected one or more{self.last_skipped}")


def decode_errors(images: Mapping[str, ImageSource]) -> Generator[tuple[str, Exception], None, None]:
    """Yield key and error of each image that cannot be decoded, in order; decodes in as many threads as there are cores."""

    def error_of(image: ImageSource) -> Exception | None:
        try:
            image.open()
        except (FileNotFoundError, ValueError) as error:
            return error
        return None

    many = len(images) >= MANY_IMAGES
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(len(images), "checking images", unit="image") if many else contextlib.nullcontext() as bar,
    ):
        try:
            for key, error in zip(images, pool.map(error_of, images.values()), strict=True):
                if error is not None:
                    yield key, error
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def require_readable(images: Iterable[ImageSource]) -> None:
    """Decode every image before a long computation needs it; raise the first error."""
    with contextlib.closing(decode_errors({image.key: image for image in images})) as errors:
        for _, error in errors:
            raise error
