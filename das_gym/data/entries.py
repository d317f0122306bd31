"""Entries of data sets: reading JSON files, checking each entry, and raising at or skipping bad ones."""

import codecs
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, TypeVar

from das_gym.data.images import IMAGE_HINT, FolderListings, ImageFile, ImageSource, decode_errors
from das_gym.data.splits import Splits, content_keys, warn_of_repeated_questions, warn_of_shared_images
from das_gym.files import absolute_path, check_plain, read_json

Example = TypeVar("Example")

POLICIES = ("raise", "skip")

Fields = Mapping[str, type | tuple[type, ...]]
"""The fields that an entry needs, with the type or types of each."""

HINT = 'Correct it, or leave such examples out: on_bad_example="skip" (`on_bad_example=skip` on a command line)'


class Illustrated(Protocol):
    """An example with images."""

    @property
    def images(self) -> Sequence[ImageSource]:
        """Its images; empty if it has none."""


IllustratedExample = TypeVar("IllustratedExample", bound=Illustrated)


class BadExamples:
    """The policy for bad examples, and a record of those skipped so far.

    A reader makes one per data set, turns entries into examples with `parse`, removes those without a usable image with
    `drop_broken`, and ends with `splits`. A file that cannot be read at all always raises.
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
        """Return the errors of unusable images by key: with `skip` all are decoded, otherwise files are only looked for."""
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


def read_entries(path: Path, bad: BadExamples) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a file that holds one JSON list, or one JSON object per line, whatever its name.

    Each comes after its file and place, `train.json: [7]` or `train.jsonl: line 8`; `bad` receives lines that are not JSON.
    """
    if not _has_lines(path):
        for index, entry in enumerate(read_list(path)):
            yield f"{path}: [{index}]", entry
        return
    for number, content in _numbered_lines(path):
        try:
            entry = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors
            bad.report(ValueError(f"{path}: line {number} is not valid JSON in UTF-8 ({error})"))
        else:
            yield f"{path}: line {number}", entry


def read_list(path: Path, key: str = "", object_hook: Callable[[dict[str, Any]], Any] | None = None) -> list[Any]:
    """Return the list that a JSON file holds, or the list named `key` of its object; ValueError for other content."""
    whole = read_json(path, object_hook)
    found = whole
    if key:
        found = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(found, list):
        expected = f"an object with a list `{key}`" if key else "a list of entries, or one object per line"
        got = f"an object with {first_few(list(whole)) or 'nothing'}" if isinstance(whole, dict) else f"{whole!r:.30}"
        raise ValueError(f"{path} has an unexpected JSON structure: got {got}, expected {expected}")
    return found


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    check_plain([path])
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if content:
                yield number, content


def _has_lines(path: Path) -> bool:
    """Return whether the first line is a JSON object by itself."""
    # A list, and an object that spans several lines, begin with a line that is no JSON object.
    first = next((content for _, content in _numbered_lines(path)), b"")
    try:
        return first.startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def first_few(names: Sequence[str], limit: int = 8) -> str:
    """Return the first few names on one line, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return " ".join(", ".join(names[:limit]).split()) + more


def check_fields(entry: object, fields: Fields, where: str) -> None:
    """Raise ValueError for an entry that is no object, lacks a field or has a value of another type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object: got {entry!r:.60}, expected {', '.join(fields)}")
    for name, allowed in fields.items():
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        if name not in entry:
            raise ValueError(
                f"{where} has no `{name}`: got {first_few(list(entry)) or 'nothing'}, expected {', '.join(fields)}"
            )
        if type(entry[name]) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: wrong type of `{name}`: got {entry[name]!r:.60}, expected {expected}")


def check_text(text: object, where: str) -> str:
    """Return a text without surrounding white space; raise ValueError where it is no text, blank, or not valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} is empty: got {text!r:.60}, expected a text")
    check_characters(text, where)
    return text.strip()


def check_characters(text: str, where: str) -> None:
    """Raise ValueError for half of a surrogate pair, which JSON allows and no tokenizer reads; the text may be empty."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where} is not valid Unicode: got {text!a:.60}")


def check_unique(seen: dict[Any, str], value: Any, name: str, where: str) -> None:
    """Record that a value occurs at `where`; raise ValueError if it is in `seen` from another place."""
    before = seen.setdefault(value, where)
    if before != where:
        raise ValueError(f"{where} repeats `{name}` {value} of {before}")


def data_folder(data_root: str | Path, holds: str) -> Path:
    """Return the folder of a data set, absolute; raise FileNotFoundError, with what it should hold, if it is missing."""
    root = absolute_path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"`data_root` is not a folder: got {str(data_root)!r}, expected a folder with {holds}")
    return root


def find_file(root: Path, names: Sequence[str], folders: Sequence[str] = ("",)) -> Path:
    """Return the first of the files that exists in one of the folders of a data root; raise FileNotFoundError for none."""
    for name in names:
        for folder in folders:
            if (root / folder / name).is_file():
                return root / folder / name
    places = "" if len(folders) == 1 else f" (looked in {', '.join(folder or '.' for folder in folders)})"
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}{places}: got {describe_folder(root)}")


def describe_folder(folder: Path) -> str:
    """Return the first names in a folder, for errors."""
    return first_few(sorted(path.name for path in folder.iterdir())) or "an empty folder"
