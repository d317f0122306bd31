"""Bad examples: raise at the first one, or leave them out and keep a line about each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TypeVar

from das_gym.data.images import ImageSource
from das_gym.data.verdicts import decode_errors, missing_files
from das_gym.files import absolute

Example = TypeVar("Example")

POLICIES = ("raise", "skip")
"""What `on_bad_example` may be."""

WAY_OUT = 'pass on_bad_example="skip" to leave out what is bad'


class BadExamples:
    """What a reader does with a bad example, and what it has left out so far.

    A reader makes one for each data set that it reads, tells it of every bad entry with `report`, goes on with the next
    entry where that returns, passes what is left through `drop_broken`, and puts `lines` and `count` into `Splits`. Where
    it reads several files, it calls `new_file` before each, so that `first_left_out` speaks of that one. A file that cannot
    be read as a whole is no bad example: that always raises.

    Args:
        on_bad_example: `raise` or `skip`.

    Raises:
        ValueError: `on_bad_example` is neither.
    """

    def __init__(self, on_bad_example: str = "raise") -> None:
        if on_bad_example not in POLICIES:
            raise ValueError(f"on_bad_example={on_bad_example!r} is unknown; choose one of {', '.join(POLICIES)}")
        self.skips = on_bad_example == "skip"
        self.count = 0
        self._lines: list[str] = []
        self._of_file = (0, 0)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each bad entry, which may be of several examples, or of an example that another line is about."""
        return tuple(self._lines)

    @property
    def first_left_out(self) -> str:
        """What to add to an error that may come of what was left out of a file: empty, if nothing was."""
        lines, count = self._of_file
        return f"; the first of {self.count - count} left out: {self._lines[lines]}" if self._lines[lines:] else ""

    def new_file(self) -> None:
        """From here on, `first_left_out` speaks of another file."""
        self._of_file = len(self._lines), self.count

    def add_lines(self, lines: Iterable[str], count: int) -> None:
        """Keep lines about `count` examples that an earlier reading left out."""
        self._lines.extend(lines)
        self.count += count

    def report(self, error: Exception, examples: int = 1) -> None:
        """Raise the error with the way out added, or keep its text and return.

        Args:
            error: A ValueError or FileNotFoundError whose text names file and entry.
            examples: How many examples are left out for it.
        """
        if self.skips:
            self._lines.append(str(error))
            self.count += examples
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
        if not self.skips:
            return missing_files(distinct)
        # what is wrong, without the advice: it is being left out
        return {key: type(error)(str(error).partition("; ")[0]) for key, error in decode_errors(distinct)}

    def drop_broken(
        self,
        examples: Sequence[Example],
        images: Callable[[Example], Sequence[ImageSource]],
        name: Callable[[Example], str],
        size: Callable[[Example], int] = lambda _: 1,
    ) -> list[Example]:
        """The examples whose images can be used; the others are left out or raise.

        Args:
            examples: What was read.
            images: The images of an example.
            name: Names an example and its file, such as `dev.json: identifier dev-1-2-0`.
            size: How many examples it counts as.

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
                self.report_broken(name(example), error, len(broken), total, size(example))
        return kept

    def report_broken(self, name: str, error: Exception, broken: int, total: int, examples: int = 1) -> None:
        """Report an example whose image is in `broken_images`; with `raise`, which only looks for files, tell how many miss.

        Args:
            name: Names example and file.
            error: What `broken_images` says of its image.
            broken: Images in `broken_images`.
            total: Images that were looked at.
            examples: How many examples are left out for it.
        """
        counted = "" if self.skips else f" ({broken} of {total} images are missing); put them there"
        self.report(type(error)(f"{name}: {error}{counted}"), examples)

    def require(self, examples: Sized, what: str, way_out: str = "") -> None:
        """Refuse a split of which nothing is left.

        Args:
            examples: What is left.
            what: Names split and file, such as `the dev split (dev.json)`.
            way_out: What else may be done.

        Raises:
            ValueError: `examples` is empty.
        """
        if not len(examples):
            way_out = f"; {way_out}" if way_out else ""
            raise ValueError(f"{what} holds no usable example, and needs at least one{way_out}{self.first_left_out}")


def require_readable(images: Iterable[ImageSource]) -> None:
    """Decode every image that is not known to be readable, before anything is done that takes long.

    Args:
        images: The images; those that occur several times are looked at once.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One cannot be decoded; the text names it. Those before it are remembered.
    """
    with contextlib.closing(decode_errors({image.key: image for image in images})) as errors:
        for _, error in errors:
            raise error


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
            has = " ".join(", ".join(entry).split()) or "nothing"
            raise ValueError(f"{where} has no {name!r}; it needs {', '.join(fields)}, and has {has}")
        if type(entry[name]) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where} has {name}={entry[name]!r:.60}; it must be of type {wanted}")


def check_text(text: str | None, where: str) -> None:
    """Refuse a text that is empty or blank, or that no tokenizer can read.

    Args:
        text: What a model is to read, or an answer.
        where: Names file, entry and field.

    Raises:
        ValueError: Says which.
    """
    if not text or not text.strip():
        raise ValueError(f"{where} is empty; write the text there")
    check_characters(text, where)


def check_characters(text: str, where: str) -> None:
    """Refuse half of a character that takes two in JSON; the text may be empty."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is {text!a:.60}, which is no valid text ({error.reason})") from None


def data_folder(data_root: str | Path, holds: str) -> Path:
    """The folder of a data set, absolute.

    Args:
        data_root: As a person gave it.
        holds: What the folder has to have in it, for the error.

    Raises:
        FileNotFoundError: It is no folder.
    """
    root = absolute(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"data_root={str(data_root)!r} is not a folder; name the one with {holds}")
    return root
