"""Reads SNLI-VE from its official files.

A data root holds `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl` (an object a line, with `pairID`,
`Flickr30K_ID`, `sentence2` and `gold_label`), itself or in a folder `data`, and Flickr30k's images, `{Flickr30K_ID}.jpg`, in
one of `FOLDERS`. Train trains, dev scores masks (reward), test is reported. Entries whose gold label is `-`, of which people
could not agree, are passed over, as everybody does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_fields, check_text, data_folder
from das_gym.data.entries import read_entries
from das_gym.data.images import ImageFile, ImageSource, Listings
from das_gym.data.splits import Splits

LABELS = ("contradiction", "neutral", "entailment")
"""The labels in METER's order: that of the logits of its `snli_classifier`, and of the numbers in its arrow tables."""

UNDECIDED = "-"
"""What SNLI writes where people did not agree on a label."""

PARTS = ("train", "dev", "test")

FOLDERS = ("flickr30k_images", "flickr30k-images", "Flickr30K/images", "images", "")
"""Where images are looked for, in the data root."""

_FIELDS: dict[str, type] = {"pairID": str, "Flickr30K_ID": str, "sentence2": str, "gold_label": str}


@dataclass(frozen=True, slots=True)
class SNLIVEExample:
    """A picture, which is the premise, and a hypothesis.

    Attributes:
        key: The data set's own name of the pair, unique in it.
        hypothesis: The sentence.
        image: The picture.
        label: Index into `LABELS`.
    """

    key: str
    hypothesis: str
    image: ImageSource
    label: int


def load_snli_ve(data_root: str | Path, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
    """Read a data set in SNLI-VE's format; which part is which stands at the top of this module.

    Args:
        data_root: The folder described there.
        on_bad_example: `raise`, or `skip` to leave bad entries out; then every image is decoded once, to see that it can be.

    Returns:
        The three splits, each in the order of its file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: An entry is damaged, does not fit the format or occurs twice, or a split is empty.
    """
    root = data_folder(data_root, "snli_ve_train.jsonl and Flickr30k's images")
    paths, bad = [_find_file(root, part) for part in PARTS], BadExamples(on_bad_example)
    reader = _Reader(root, bad)
    train, reward, test = map(reader.examples, paths)
    return Splits(train, reward, test, bad.lines, bad.count)


def _find_file(root: Path, part: str) -> Path:
    name = f"snli_ve_{part}.jsonl"
    for path in (root / name, root / "data" / name):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{root} has no {name}, nor has a folder data in it; it holds {there}")


class _Reader:
    """Reads file after file, and remembers which pairs occurred.

    Args:
        root: The data root.
        bad: Told of every bad entry.
    """

    def __init__(self, root: Path, bad: BadExamples) -> None:
        self.root = root
        self.bad = bad
        self._listings = Listings()
        self._images: dict[str, ImageFile] = {}
        self._seen: dict[str, str] = {}

    def examples(self, path: Path) -> tuple[SNLIVEExample, ...]:
        """The good examples of a file; bad ones are reported."""
        self.bad.new_file()
        kept = self.bad.drop_broken(
            list(self._read(path)), lambda example: (example.image,), lambda example: f"{path}: {example.key}"
        )
        self.bad.require(kept, str(path))
        return tuple(kept)

    def _read(self, path: Path) -> Iterator[SNLIVEExample]:
        for where, entry in read_entries(path, self.bad):
            try:
                check_fields(entry, _FIELDS, where)
                if entry["gold_label"] != UNDECIDED:
                    yield self._example(entry, where)
            except ValueError as error:
                self.bad.report(error)

    def _example(self, entry: dict[str, Any], where: str) -> SNLIVEExample:
        """The example of an entry, checked."""
        label = checked_label(entry["gold_label"], where)
        check_text(entry["sentence2"], f"{where}: sentence2")
        before = self._seen.setdefault(entry["pairID"], where)
        if before != where:
            raise ValueError(
                f"{where} repeats the pairID {entry['pairID']} of {before}; every one must occur once: delete one"
            )
        return SNLIVEExample(entry["pairID"], entry["sentence2"].strip(), self._image(entry["Flickr30K_ID"], where), label)

    def _image(self, name: str, where: str) -> ImageFile:
        """The image of that number; all of its hypotheses share it."""
        if name not in self._images:
            if not name or Path(name).name != name:
                raise ValueError(f"{where} has Flickr30K_ID={name!r:.60}; it must be the name of an image without .jpg")
            paths = [self.root / folder / f"{name}.jpg" for folder in FOLDERS]
            self._images[name] = ImageFile(self._listings.first_of(paths))
        return self._images[name]


def checked_label(label: str, where: str) -> int:
    """Index of a label.

    Raises:
        ValueError: it is none of `LABELS`.
    """
    if label not in LABELS:
        raise ValueError(f"{where} has the label {label!r:.60}; it must be one of {', '.join(LABELS)}, or {UNDECIDED}")
    return LABELS.index(label)
