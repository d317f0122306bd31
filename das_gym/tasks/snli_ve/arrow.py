"""Reads SNLI-VE from arrow tables.

A row of `snli_train.arrow`, `snli_dev.arrow` or `snli_test.arrow` is an image with its pairs of sentences, premise and
hypothesis, and their labels as numbers, indices into `LABELS`: as METER's script writes them. The tables leave out `pairID`;
an example's key is its place in its table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from das_gym.data.arrow import ArrowFolder, ArrowImage, TaskFiles, read_rows
from das_gym.data.checks import BadExamples, check_text
from das_gym.data.splits import Splits
from das_gym.tasks.snli_ve.files import LABELS, PARTS, SNLIVEExample

FILES = TaskFiles("snli_ve", tables=("snli",), raw=("snli_ve_*.jsonl", "data/snli_ve_*.jsonl"))

_COLUMNS = {"image": "bytes", "sentences": "list of list of text", "labels": "list of integer"}


def load_arrow_snli_ve(data_root: str | Path, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
    """Read SNLI-VE from arrow tables, as `Task.load_splits` asks.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: The folder or a table is missing.
        ValueError: A table or an entry is damaged, or a split is empty.
    """
    tables, bad = ArrowFolder.find(data_root, FILES), BadExamples(on_bad_example)
    train, reward, test = (_read(tables.require(part), part, bad) for part in PARTS)
    return Splits(train, reward, test, bad.lines, bad.count)


def _read(path: Path, part: str, bad: BadExamples) -> tuple[SNLIVEExample, ...]:
    """The good examples of a table; bad ones are reported."""
    bad.new_file()
    kept = bad.drop_broken(
        list(_examples(path, part, bad)), lambda example: (example.image,), lambda example: f"{path}: {example.key}"
    )
    bad.require(kept, str(path))
    return tuple(kept)


def _examples(path: Path, part: str, bad: BadExamples) -> Iterator[SNLIVEExample]:
    for row, entry in enumerate(read_rows(path, _COLUMNS)):
        sentences, labels, image = entry["sentences"] or [], entry["labels"] or [], ArrowImage(path, row)
        if not sentences or len(sentences) != len(labels):
            told = f"{len(sentences)} pairs of sentences and {len(labels)} labels; it needs one or more of each"
            bad.report(ValueError(f"{path}: row {row} has {told}"), max(1, len(sentences), len(labels)))
            continue
        for number, (pair, label) in enumerate(zip(sentences, labels, strict=True)):
            try:
                hypothesis = _checked(pair, label, f"{path}: row {row}: sentences[{number}]")
            except ValueError as error:
                bad.report(error)
                continue
            yield SNLIVEExample(f"{part}-{row}-{number}", hypothesis, image, label)


def _checked(pair: list[str | None] | None, label: int | None, where: str) -> str:
    """The hypothesis of an entry that can be used."""
    if pair is None or len(pair) != 2:
        raise ValueError(f"{where} is {pair!r:.60}; it must be two sentences, premise and hypothesis")
    if label is None or not 0 <= label < len(LABELS):
        raise ValueError(f"{where} has the label {label}; it must be 0..{len(LABELS) - 1}, for {', '.join(LABELS)}")
    check_text(pair[1], where)
    return str(pair[1]).strip()
