"""Reads NLVR2 from arrow tables.

A row is a pair of images with its sentences. Whole image sets of `nlvr2_train.arrow`, a tenth of them, score masks (reward)
and the others train; test is `nlvr2_test1.arrow` where there is one, else `nlvr2_dev.arrow`. The tables leave out NLVR2's
`directory`, by which its own files are divided, so the reward split is another one, and an image that two sets share
may be in both.

They leave out the number of a sentence, too. It is counted here through the different sentences of an image set, which
is all that consistency needs; identifiers need not be those of NLVR2's own files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from das_gym.data.arrow import ArrowFolder, ArrowImage, TaskFiles, read_rows
from das_gym.data.checks import BadExamples, check_text
from das_gym.data.splits import Splits
from das_gym.tasks.nlvr2.files import LABELS, TEST_SPLITS, NLVR2Example, divided

FILES = TaskFiles(
    "nlvr2",
    tables=("nlvr2",),
    raw=("train.json", "data/train.json", "nlvr2/data/train.json", "nlvr/nlvr2/data/train.json"),
)

IMAGES = ("image_0", "image_1")
"""Columns of the left and the right image."""

_COLUMNS = {
    **dict.fromkeys(IMAGES, "bytes"),
    "questions": "list of text",
    "answers": "list of text",
    "identifier": "text",
}


def load_arrow_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
    """Read NLVR2 from arrow tables, as `Task.load_splits` asks; which part is which stands at the top of this module.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: The folder or a table is missing.
        ValueError: A table or an entry is damaged, a split is empty, or all of train is of one image set.
    """
    tables, bad = ArrowFolder.find(data_root, FILES), BadExamples(on_bad_example)
    train_path = tables.require("train")
    test_path = tables.require(next((split for split in TEST_SPLITS if tables.path(split).is_file()), TEST_SPLITS[0]))
    train = _read(train_path, bad)
    sets = {_image_set(example) for example in train}
    if len(sets) < 2:
        raise ValueError(
            f"{train_path}: all rows are of the image set {sets.pop()}; whole sets are kept from training to score masks "
            f"on, so there must be two or more: add rows of others{bad.first_left_out}"
        )
    other = tables.path("dev")
    test = _read(test_path, bad, f"remove it, and {other.name} is used" if other != test_path and other.is_file() else "")
    return Splits(*divided(train, _image_set), test, bad.lines, bad.count)


def _read(path: Path, bad: BadExamples, way_out: str = "") -> tuple[NLVR2Example, ...]:
    """The good examples of a table; bad ones are reported."""
    bad.new_file()
    examples = list(_examples(path, bad, way_out))
    kept = bad.drop_broken(examples, lambda example: example.images, lambda example: f"{path}: {example.identifier}")
    bad.require(kept, str(path), way_out)
    return tuple(kept)


def _examples(path: Path, bad: BadExamples, way_out: str) -> Iterator[NLVR2Example]:
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    seen: dict[str, str] = {}
    for row, entry in enumerate(read_rows(path, _COLUMNS, *filter(None, [way_out]))):
        where = f"{path}: row {row}"
        try:
            pair = _checked_pair(entry, where)
        except ValueError as error:
            bad.report(error, max(1, len(entry["questions"] or ()), len(entry["answers"] or ())))
            continue
        images = (ArrowImage(path, row, IMAGES[0]), ArrowImage(path, row, IMAGES[1]))
        of_set = numbers[pair.rpartition("-")[0]]
        for index, (sentence, label) in enumerate(zip(entry["questions"], entry["answers"], strict=True)):
            here = f"{where} ({pair}): questions[{index}]"
            try:
                _check_sentence(sentence, label, here)
                identifier = f"{pair}-{of_set.setdefault(sentence, len(of_set))}"
                if seen.setdefault(identifier, here) != here:
                    raise ValueError(f"{here} repeats the sentence of {seen[identifier]}; a pair has every sentence once")
            except ValueError as error:
                bad.report(error)
                continue
            yield NLVR2Example(identifier, sentence, images, LABELS[label])


def _checked_pair(entry: dict[str, Any], where: str) -> str:
    """The identifier of a row: split, image set and pair."""
    identifier = entry["identifier"] or ""
    parts = identifier.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts[1:]):
        raise ValueError(f"{where} has the identifier {identifier!r:.60}; it must be split-set-pair, such as dev-12-0")
    sentences, labels = len(entry["questions"] or ()), len(entry["answers"] or ())
    if not sentences or sentences != labels:
        raise ValueError(
            f"{where} ({identifier}) has {sentences} questions and {labels} answers; it needs one or more of each"
        )
    return identifier


def _check_sentence(sentence: str | None, label: str | None, here: str) -> None:
    check_text(sentence, here)
    if label not in LABELS:
        raise ValueError(f"{here} has the answer {label!r:.60}; it must be True or False")


def _image_set(example: NLVR2Example) -> str:
    """Split and number of the image set."""
    return example.identifier.rsplit("-", 2)[0]
