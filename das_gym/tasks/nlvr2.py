"""NLVR2: is a sentence true of two images?

A data root holds `train.json` and `test1.json` or `dev.json` (one JSON object per line with `sentence`, `label` "True" or
"False", `identifier`, and in train `directory`), itself or in one of `FOLDERS`. The images are
`{split}-{set}-{pair}-img0.png` (left) and `-img1.png` (right): of train in `images/train/{directory}/`, of the others in
`images/{split}/`. The folder `images` may be left out.

A tenth of the `directory` buckets of train, at least one, is the reward split, as the authors of NLVR2 advise. Test is
`test1.json`, or `dev.json` where that is missing.

Rows of arrow tables are a pair of images with its sentences. They lack `directory`: a tenth of the image sets is the reward
split, and an image that two sets share may be in both parts. They also lack sentence numbers, which are counted through the
distinct sentences of an image set: all that consistency needs.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from das_gym.data.arrow_format import ArrowFormat, require_table
from das_gym.data.entries import (
    BadExamples,
    Fields,
    check_fields,
    check_text,
    check_unique,
    data_folder,
    find_file,
    read_entries,
)
from das_gym.data.images import ImageFile, ImageSource, is_folder
from das_gym.data.rows import CellImage
from das_gym.data.splits import Splits, hash_order, rounded_share
from das_gym.models.inputs import Pair
from das_gym.shapes import bundled_root
from das_gym.tasks.answering.files import data_file
from das_gym.tasks.base import ClassificationTask

REWARD_SHARE = 0.1
"""Share of train's buckets that become the reward split."""

TEST_SPLITS = ("test1", "dev")

LABELS = {"True": True, "False": False}

FOLDERS = ("", "data", "nlvr2/data", "nlvr/nlvr2/data")

TABLES = ArrowFormat(
    "nlvr2",
    prefixes=("nlvr2",),
    fields={"identifier": str},
    lists={"questions": str, "answers": str},
)

_FIELDS: Fields = {"identifier": str, "sentence": str, "label": str}


@dataclass(frozen=True, slots=True)
class NLVR2Example:
    """A sentence about a left and a right image, and whether it is true; it is named `split-set-pair-sentence`."""

    identifier: str
    sentence: str
    images: tuple[ImageSource, ImageSource]
    label: bool

    @property
    def key(self) -> str:
        """The identifier, which begins with the split."""
        return self.identifier

    @property
    def set_id(self) -> str:
        """The identifier without its pair: the same for all pairs with this sentence."""
        split, set_number, _, sentence_number = self.identifier.split("-")
        return f"{split}-{set_number}-{sentence_number}"


def load_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
    """Read the official files, or arrow tables; arguments and errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    if TABLES.is_in(data_root):
        tables = TABLES.find(data_root)
        train_path = require_table(tables, "train")
        test_path = require_table(tables, *TEST_SPLITS)
        train, test = (_read_table(path, bad) for path in (train_path, test_path))
        buckets = [example.identifier.rsplit("-", 2)[0] for example in train]
    else:
        root = data_folder(data_root, "NLVR2's JSON files and images")
        train_path = find_file(root, ["train.json"], FOLDERS)
        test_path = find_file(root, [f"{split}.json" for split in TEST_SPLITS], FOLDERS)
        train, test = (_read(path, root, bad) for path in (train_path, test_path))
        buckets = [Path(example.images[0].key).parent.name for example in train]
    if len(set(buckets)) < 2:
        raise ValueError(
            f"{train_path}: too few directories or image sets to divide: got {buckets[0]!r} only, expected two or more, of "
            f"which one becomes the reward split{bad.last_skipped}"
        )
    chosen = reward_buckets(buckets)
    parts: dict[bool, list[NLVR2Example]] = {True: [], False: []}
    for example, bucket in zip(train, buckets, strict=True):
        parts[bucket in chosen].append(example)
    return bad.splits(parts[False], parts[True], test, attrgetter("sentence"))


def reward_buckets(buckets: Iterable[str]) -> frozenset[str]:
    """Return the buckets that are the reward split: a tenth, at least one, with the lowest hashes of their names."""
    ranked = hash_order(buckets)
    return frozenset(ranked[: rounded_share(REWARD_SHARE, len(ranked))])


def _read(path: Path, root: Path, bad: BadExamples) -> tuple[NLVR2Example, ...]:
    split = path.stem
    fields = {**_FIELDS, "directory": (int, str)} if split == "train" else _FIELDS
    seen: dict[str, str] = {}
    folders: dict[str, Path] = {}

    def example(entry: Any, where: str) -> NLVR2Example:
        check_fields(entry, fields, where)
        identifier = entry["identifier"]
        label = entry["label"]
        parts = identifier.split("-")
        if len(parts) != 4 or parts[0] != split or not all(part.isascii() and part.isdigit() for part in parts[1:]):
            raise ValueError(f"{where}: wrong `identifier`: got {identifier!r:.80}, expected {split}-set-pair-sentence")
        if label not in LABELS:
            raise ValueError(f"{where} ({identifier}): wrong `label`: got {label!r:.60}, expected True or False")
        check_text(entry["sentence"], f"{where} ({identifier}): `sentence`")
        check_unique(seen, identifier, "identifier", where)
        directory = str(entry["directory"]) if split == "train" else ""
        if directory not in folders:
            if split == "train" and (directory in ("", ".", "..") or "/" in directory or "\\" in directory):
                raise ValueError(f"{where}: wrong `directory`: got {directory!r:.60}, expected the name of a folder")
            options = [base / split / directory for base in (root / "images", root)]
            folders[directory] = next((folder for folder in options if is_folder(folder)), options[0])
        left, right = (ImageFile(folders[directory] / f"{'-'.join(parts[:3])}-img{side}.png") for side in (0, 1))
        return NLVR2Example(identifier, entry["sentence"], (left, right), LABELS[label])

    read = bad.parse(read_entries(path, bad), example)
    return tuple(bad.drop_broken(read, str(path)))


def _read_table(path: Path, bad: BadExamples) -> tuple[NLVR2Example, ...]:
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    seen: dict[str, str] = {}

    def example(item: dict[str, Any], where: str) -> NLVR2Example:
        check_fields(item, TABLES.lists, where)
        pair = item["identifier"]
        sentence = item["questions"]
        label = item["answers"]
        image_set, _, number = pair.rpartition("-")
        if pair.count("-") != 2 or not all(part.isascii() and part.isdigit() for part in (image_set.split("-")[1], number)):
            raise ValueError(f"{where}: wrong `identifier`: got {pair!r:.60}, expected split-set-pair, such as dev-12-0")
        check_text(sentence, f"{where} ({pair}): `questions`")
        if label not in LABELS:
            raise ValueError(f"{where} ({pair}): wrong `answers`: got {label!r:.60}, expected True or False")
        of_set = numbers[image_set]  # the sentences of an image set occur with each of its pairs
        identifier = f"{pair}-{of_set.setdefault(sentence, len(of_set))}"
        check_unique(seen, identifier, "sentence", where)
        images = CellImage(path, item["row"], "image_0"), CellImage(path, item["row"], "image_1")
        return NLVR2Example(identifier, sentence, images, LABELS[label])

    return tuple(TABLES.read(path, example, bad))


class NLVR2Task(ClassificationTask):
    """NLVR2: the head gets the features of the sentence with each image; logits are of false and true, in this order."""

    name = "nlvr2"
    pretrained_head = "nlvr2_classifier"
    passes = 2
    classes = ("False", "True")
    key_name = "identifier"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
        """Read NLVR2's files, or arrow tables; None is Shapes-NLVR2."""
        return load_nlvr2(bundled_root("nlvr2") if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        files = [root / folder / "train.json" for folder in FOLDERS]
        is_read = TABLES.is_in(root) or any(path.is_file() and data_file(path).kind == "nlvr2" for path in files)
        return "NLVR2" if is_read else ""

    def pairs(self, examples: Sequence[NLVR2Example]) -> list[Pair]:
        """Return each sentence with its left image (type 1), then with its right one (type 2)."""
        return [Pair(e.sentence, image, image_type) for e in examples for image_type, image in enumerate(e.images, start=1)]

    def group_features(self, pooled: Tensor) -> Tensor:
        """Return the concatenated features of both passes, (batch, 2 * feature_size), the left image's first."""
        return pooled.unflatten(0, (-1, self.passes)).flatten(1)

    def summary(self, examples: Sequence[NLVR2Example], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return accuracy, loss, and consistency: the share of sentences that are right for all their pairs of images."""
        by_sentence: defaultdict[str, list[float]] = defaultdict(list)
        for example, metric in zip(examples, metrics.tolist(), strict=True):
            by_sentence[example.set_id].append(metric)
        right = [min(values) == 1.0 for values in by_sentence.values()]
        return {**super().summary(examples, losses, metrics), "consistency": sum(right) / len(right)}
