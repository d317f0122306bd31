"""SNLI-VE, visual entailment: does an image entail a hypothesis, contradict it, or neither?

A data root holds `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl` (one object per line with `pairID`,
`Flickr30K_ID`, `sentence2` and `gold_label`), itself or in a folder `data`, and the images of Flickr30k,
`{Flickr30K_ID}.jpg`, in one of `FOLDERS`. Dev is the reward split. Entries on which the annotators did not agree are left
out, as is usual.

A row of an arrow table, as METER's script writes them, is an image with its pairs of sentences, premise and hypothesis, and
their labels, indices into `LABELS`. The key of an example is its place in its table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from das_gym.data.entries import (
    ArrowFormat,
    BadExamples,
    Fields,
    check_fields,
    check_text,
    check_unique,
    data_folder,
    find_file,
    read_entries,
    require_table,
)
from das_gym.data.images import CellImage, FolderListings, ImageFile, ImageSource, OneImage
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes import bundled_root
from das_gym.tasks.base import ClassificationTask

LABELS = ("contradiction", "neutral", "entailment")
"""The labels in the order of METER's `snli_classifier` and of the numbers in its arrow tables."""

UNDECIDED = "-"
"""The gold label of a pair on which the annotators did not agree."""

PARTS = ("train", "dev", "test")

FOLDERS = ("flickr30k_images", "flickr30k-images", "Flickr30K/images", "images", "")

TABLES = ArrowFormat(
    "snli_ve",
    prefixes=("snli",),
    columns={"image": "bytes", "sentences": "list of list of text", "labels": "list of integer"},
)

_FIELDS: Fields = {"pairID": str, "Flickr30K_ID": str, "sentence2": str, "gold_label": str}


@dataclass(frozen=True, slots=True)
class SNLIVEExample(OneImage):
    """An image, which is the premise, and a hypothesis; the label is an index into `LABELS`."""

    key: str
    hypothesis: str
    image: ImageSource
    label: int


def load_snli_ve(data_root: str | Path, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
    """Read the official files, or arrow tables; arguments and errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    if TABLES.is_in(data_root):
        tables = TABLES.find(data_root)
        train, reward, test = (_read_table(require_table(tables, part), part, bad) for part in PARTS)
        return bad.splits(train, reward, test, attrgetter("hypothesis"))
    root = data_folder(data_root, "snli_ve_train.jsonl and the images of Flickr30k")
    paths = [find_file(root, [f"snli_ve_{part}.jsonl"], ("", "data")) for part in PARTS]
    listings = FolderListings()
    images = dict[str, ImageFile]()
    seen = dict[str, str]()

    def example(entry: Any, where: str) -> SNLIVEExample | None:
        check_fields(entry, _FIELDS, where)
        label = entry["gold_label"]
        key = entry["pairID"]
        name = entry["Flickr30K_ID"]
        if label == UNDECIDED:
            return None
        if label not in LABELS:
            raise ValueError(f"{where}: wrong `gold_label`: got {label!r:.60}, expected {', '.join(LABELS)} or {UNDECIDED}")
        hypothesis = check_text(entry["sentence2"], f"{where}: `sentence2`")
        check_unique(seen, key, "pairID", where)
        if name not in images:  # five pairs and more share an image
            if not name or Path(name).name != name:
                raise ValueError(f"{where}: wrong `Flickr30K_ID`: got {name!r:.60}, expected a name without .jpg")
            images[name] = ImageFile(listings.first_existing([root / folder / f"{name}.jpg" for folder in FOLDERS]))
        return SNLIVEExample(key, hypothesis, images[name], LABELS.index(label))

    train, reward, test = (bad.drop_broken(bad.parse(read_entries(path, bad), example), str(path)) for path in paths)
    return bad.splits(train, reward, test, attrgetter("hypothesis"))


def _read_table(path: Path, part: str, bad: BadExamples) -> list[SNLIVEExample]:

    def example(item: dict[str, Any], where: str) -> SNLIVEExample:
        pair = item["sentences"]
        label = item["labels"]
        if pair is None or len(pair) != 2:
            raise ValueError(f"{where}: wrong `sentences`: got {pair!r:.60}, expected a premise and a hypothesis")
        if label is None or not 0 <= label < len(LABELS):
            raise ValueError(f"{where}: wrong `labels`: got {label}, expected 0..{len(LABELS) - 1} for {', '.join(LABELS)}")
        key = f"{part}-{item['row']}-{item['number']}"
        return SNLIVEExample(key, check_text(pair[1], where), CellImage(path, item["row"]), label)

    return TABLES.read(path, example, bad)


class SNLIVETask(ClassificationTask):
    """Visual entailment: the model gets the hypothesis with the image, which is the premise."""

    name = "snli_ve"
    pretrained_head = "snli_classifier"
    classes = LABELS
    key_name = "pairID"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
        """Read SNLI-VE's files, or arrow tables; None is Shapes-SNLI-VE."""
        return load_snli_ve(bundled_root("snli_ve") if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        names = ("snli_ve_train.jsonl", "data/snli_ve_train.jsonl")
        return "SNLI-VE" if any((root / name).is_file() for name in names) or TABLES.is_in(root) else ""

    def pairs(self, examples: Sequence[SNLIVEExample]) -> list[Pair]:
        return [Pair(example.hypothesis, example.image) for example in examples]
