"""Read NLVR2 from arrow tables, whose rows are a pair of images with its sentences.

A tenth of the image sets of `nlvr2_train.arrow` is the reward split; test is `nlvr2_test1.arrow`, or `nlvr2_dev.arrow`
where that is missing. The tables lack `directory`, by which the official files are divided: the reward split differs
from theirs, and an image that two sets share may be in both parts. They also lack sentence numbers. These are counted
through the distinct sentences of an image set, which is all that consistency needs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from das_gym.data.arrow import ArrowFormat, ArrowImage, read_items
from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import check_new, check_text
from das_gym.data.splits import Splits
from das_gym.tasks.nlvr2.files import FOLDERS, LABELS, TEST_SPLITS, NLVR2Example, divide

TABLES = ArrowFormat(
    "nlvr2",
    prefixes=("nlvr2",),
    columns={
        "image_0": "bytes",
        "image_1": "bytes",
        "questions": "list of text",
        "answers": "list of text",
        "identifier": "text",
    },
    raw=tuple(f"{folder}/train.json".lstrip("/") for folder in FOLDERS),
)


def load_arrow_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
    """Read the tables; arguments and errors are those of `Task.load_splits`."""
    tables, bad = TABLES.find(data_root), BadExamples(on_bad_example)
    train_path, test_path = tables.require("train"), tables.require(*TEST_SPLITS)
    train, reward = divide(_read(train_path, bad), lambda e: e.identifier.rsplit("-", 2)[0], train_path, bad)
    return bad.splits(train, reward, _read(test_path, bad))


def _read(path: Path, bad: BadExamples) -> tuple[NLVR2Example, ...]:
    """Read the examples of a table."""
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    seen: dict[str, str] = {}

    def example(item: dict[str, Any], where: str) -> NLVR2Example:
        pair, sentence, label = item["identifier"] or "", item["questions"], item["answers"]
        image_set, _, number = pair.rpartition("-")
        if pair.count("-") != 2 or not all(part.isascii() and part.isdigit() for part in (image_set.split("-")[1], number)):
            raise ValueError(f"{where}: wrong `identifier`: got {pair!r:.60}, expected split-set-pair, such as dev-12-0")
        check_text(sentence, f"{where} ({pair}): `questions`")
        if label not in LABELS:
            raise ValueError(f"{where} ({pair}): wrong `answers`: got {label!r:.60}, expected True or False")
        of_set = numbers[image_set]
        identifier = f"{pair}-{of_set.setdefault(sentence, len(of_set))}"
        check_new(seen, identifier, "sentence", where)
        images = ArrowImage(path, item["row"], "image_0"), ArrowImage(path, item["row"], "image_1")
        return NLVR2Example(identifier, sentence, images, LABELS[label])

    read = bad.parse(read_items(path, TABLES.columns, bad), example)
    return tuple(bad.drop_broken(read, str(path), lambda e: e.images, lambda e: e.identifier))
