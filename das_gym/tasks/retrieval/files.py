"""Read Flickr30k, COCO captions, and any data set in Karpathy's format, from his files or from arrow tables.

A data root holds `dataset_flickr30k.json`, `dataset_coco.json` or another `dataset*.json`, itself or in a folder
`karpathy`, and the images under their official names in one of `FOLDERS`. COCO's images are in the folder that their
entry names (`filepath`: `train2014`, `val2014`). Where there are several JSON files, pass one of them as the data root.

Arrow tables are `{prefix}_train.arrow`, optionally `{prefix}_restval.arrow`, `{prefix}_val.arrow` and `{prefix}_test.arrow`.
A row is an image with its captions. They lack the numbers of images and captions, which are counted in this order.

Train and `restval` are for training, val is the reward split, test is the test split: 29,000 / 1,014 / 1,000 images of
Flickr30k, 113,287 / 5,000 / 5,000 of COCO. Each needs at least 4 images of 5 captions: an example has 15 captions of other
images as its false texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from das_gym.data.entries import (
    ArrowFormat,
    BadExamples,
    Fields,
    check_fields,
    check_new,
    check_text,
    content_of,
    read_items,
    read_list,
    require_table,
)
from das_gym.data.images import FolderListings, ImageFile
from das_gym.data.splits import Splits
from das_gym.data.tables import CellImage
from das_gym.files import absolute
from das_gym.tasks.retrieval.captions import CaptionedImage, RetrievalExample, retrieval_examples

SPLITS = {"train": "train", "restval": "train", "val": "reward", "test": "test"}
"""Karpathy's splits, and ours."""

FOLDERS = ("flickr30k-images", "images", "")
"""Where images may be, in the data root."""

TABLES = ArrowFormat(
    "retrieval",
    prefixes=("f30k_caption_karpathy", "coco_caption_karpathy"),
    columns={"image": "bytes", "caption": "list of text", "image_id": "text"},
)

_IMAGE_FIELDS: Fields = {"filename": str, "split": str, "imgid": int, "sentences": list}
_SENTENCE_FIELDS: Fields = {"raw": str, "sentid": int}


def load_captions(data_root: str | Path, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
    """Read files or tables, an example for each caption; arguments and errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    if TABLES.is_in(data_root):
        return _load_tables(TABLES.find(data_root), bad)
    path, root = _find_file(absolute(data_root))
    reader = _Reader(root)
    entries = read_list(path, "images")
    read = bad.parse(((f"{path}: images[{n}]", entry) for n, entry in enumerate(entries)), reader.image)
    images = bad.drop_broken(read, str(path), lambda e: f"imgid {e.image_id}")

    def examples(split: str) -> tuple[RetrievalExample, ...]:
        source = f"{path} (the {split} split)"
        chosen = [image for image in images if reader.split_of[image.image_id] == split]
        bad.require(chosen, source)
        return retrieval_examples(chosen, source, bad.last_skipped)

    return bad.splits(examples("train"), examples("reward"), examples("test"), attrgetter("caption"))


def _find_file(root: Path) -> tuple[Path, Path]:
    """Return the JSON file of a data root, and the folder in which images are looked for."""
    if root.is_file():
        return root, root.parent.parent if root.parent.name == "karpathy" else root.parent
    found = caption_files(root)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ValueError(f"{root} holds several data sets: got {names}. Pass one of these files as `data_root`")
    if not found:
        content = content_of(root) if root.is_dir() else "no folder"
        raise FileNotFoundError(
            f"{root} has no dataset_flickr30k.json or dataset_coco.json, nor has karpathy/: got {content}"
        )
    return found[0], root


def caption_files(root: Path) -> list[Path]:
    """Return the JSON files of Karpathy's splits in a data root."""
    return sorted(path for folder in (root, root / "karpathy") for path in folder.glob("dataset*.json"))


class _Reader:
    """Makes captioned images of entries; files are looked for in `root`, `split_of` has our split of each image id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.split_of: dict[int, str] = {}
        self._listings = FolderListings()
        self._seen: defaultdict[str, dict[Any, str]] = defaultdict(dict)

    def image(self, entry: Any, where: str) -> CaptionedImage:
        """Return the image of an entry with its captions."""
        check_fields(entry, _IMAGE_FIELDS, where)
        filename = entry["filename"]
        folder = entry.get("filepath") or ""
        imgid = entry["imgid"]
        for name, value in {"filename": filename, "filepath": folder}.items():
            if value or name == "filename":
                check_text(value, f"{where}: `{name}`")
                if "\0" in value:
                    raise ValueError(f"{where}: wrong `{name}`: got {value!r:.60}, expected the name of a file")
        where += f" ({filename})"
        if entry["split"] not in SPLITS:
            raise ValueError(f"{where}: wrong `split`: got {entry['split']!r:.60}, expected {', '.join(SPLITS)}")
        file = self._find(filename, folder)
        check_new(self._seen["imgid"], imgid, "imgid", where)
        check_new(self._seen["image"], str(file), "image", where)
        if not entry["sentences"]:
            raise ValueError(f"{where} has no captions, expected one or more in `sentences`")
        sentences = entry["sentences"]
        own = {" ".join(str(sentence.get("raw")).split()) for sentence in sentences if isinstance(sentence, dict)}
        captions = [self._caption(one, own, f"{where}: sentences[{number}]") for number, one in enumerate(sentences)]
        self.split_of[imgid] = SPLITS[entry["split"]]
        texts, ids, hard = zip(*captions, strict=True)
        return CaptionedImage(ImageFile(file), imgid, texts, ids, hard)

    def _caption(self, sentence: Any, own: set[str], where: str) -> tuple[str, int, tuple[str, ...]]:
        """Return text, sentid and hard negatives."""
        check_fields(sentence, _SENTENCE_FIELDS, where)
        text = " ".join(check_text(sentence["raw"], f"{where}: `raw`").split())
        negatives = sentence.get("hard_negatives", [])
        if not isinstance(negatives, list):
            raise ValueError(f"{where}: wrong `hard_negatives`: got {negatives!r:.60}, expected a list of texts")
        hard = dict.fromkeys(" ".join(check_text(each, f"{where}: `hard_negatives`").split()) for each in negatives)
        if true := own.intersection(hard):
            raise ValueError(f"{where}: wrong `hard_negatives`: got {true.pop()!r}, which is a caption of the image")
        check_new(self._seen["sentid"], sentence["sentid"], "sentid", where)
        return text, sentence["sentid"], tuple(hard)

    def _find(self, filename: str, folder: str) -> Path:
        """Return the path of an image; where it does not exist, the path at which it is expected."""
        paths = [self.root / base / folder / filename for base in (FOLDERS[::-1] if folder else FOLDERS)]
        paths += [self.root / base / filename for base in FOLDERS if folder]
        return self._listings.first_of(paths)


def _load_tables(tables: Mapping[str, Path], bad: BadExamples) -> Splits[RetrievalExample]:
    image_ids = count()
    caption_ids = count()
    seen = dict[str, str]()

    def checked(item: dict[str, Any], where: str) -> dict[str, Any]:
        if not item["image_id"]:
            raise ValueError(f"{where} has no `image_id`, expected the name of its image")
        check_new(seen, item["image_id"], "image_id", where.rpartition(",")[0])
        return {**item, "caption": " ".join(check_text(item["caption"], f"{where}: `caption`").split())}

    def images_in(path: Path) -> list[CaptionedImage]:
        images = []
        for row, items in groupby(bad.parse(read_items(path, TABLES.columns, bad), checked), lambda item: item["row"]):
            captions = tuple(item["caption"] for item in items)
            ids = tuple(next(caption_ids) for _ in captions)
            images.append(CaptionedImage(CellImage(path, row), next(image_ids), captions, ids, ((),) * len(captions)))
        return images

    def examples_in(*paths: Path) -> tuple[RetrievalExample, ...]:
        read = [image for path in paths for image in images_in(path)]
        images = bad.drop_broken(read, str(paths[0]), lambda e: e.image.key)
        return retrieval_examples(images, str(paths[0]), bad.last_skipped)

    train, reward, test = (require_table(tables, split) for split in ("train", "val", "test"))
    restval = [tables["restval"]] if "restval" in tables else []
    return bad.splits(examples_in(train, *restval), examples_in(reward), examples_in(test), attrgetter("caption"))
