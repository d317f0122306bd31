"""Reads Flickr30k and COCO captions, as Karpathy split them, from arrow tables.

A row is an image with its captions. `{prefix}_train.arrow`, and `{prefix}_restval.arrow` where there is one, train;
`{prefix}_val.arrow` scores masks (reward); `{prefix}_test.arrow` is reported. The prefix is `f30k_caption_karpathy` or
`coco_caption_karpathy`. The tables leave out the numbers of images and captions; they are counted here, in this order.
A split needs at least 4 images of 5 captions: an example has 15 captions of other images as its false texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from das_gym.data.arrow import ArrowFolder, ArrowImage, TaskFiles, read_rows
from das_gym.data.checks import BadExamples, check_text
from das_gym.data.splits import Splits
from das_gym.tasks.retrieval.captions import CaptionedImage, RetrievalExample, retrieval_examples

FILES = TaskFiles(
    "retrieval",
    tables=("f30k_caption_karpathy", "coco_caption_karpathy"),
    raw=("dataset*.json", "karpathy/dataset*.json"),
)

_COLUMNS = {"image": "bytes", "caption": "list of text", "image_id": "text"}


def load_arrow_captions(data_root: str | Path, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
    """Read captioned images from arrow tables; which part is which stands at the top of this module.

    Args:
        data_root: The folder of the tables, or one of them.
        on_bad_example: `raise`, or `skip` to leave out what is bad, a caption or an image with all its captions; then every
            image is decoded once, to see that it can be.

    Returns:
        The three splits, an example for each caption, in the tables' order.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: The folder or a table is missing.
        ValueError: A table or an entry is damaged, an image is in two tables, or a split is empty or too small.
    """
    tables, bad = ArrowFolder.find(data_root, FILES), BadExamples(on_bad_example)
    train, reward, test = (tables.require(split) for split in ("train", "val", "test"))
    restval = [path for path in [tables.path("restval")] if path.is_file()]
    reader = _Reader(bad)
    train_examples = reader.examples(train, *restval)
    return Splits(train_examples, reader.examples(reward), reader.examples(test), bad.lines, bad.count)


class _Reader:
    """Reads table after table, and counts images and captions.

    Args:
        bad: Told of every bad entry.
    """

    def __init__(self, bad: BadExamples) -> None:
        self.bad = bad
        self._image_ids, self._caption_ids = count(), count()
        self._seen: dict[str, str] = {}

    def examples(self, *paths: Path) -> tuple[RetrievalExample, ...]:
        """The examples of one split."""
        self.bad.new_file()
        images = []
        for path in paths:
            images += self.bad.drop_broken(
                list(self._images(path)),
                images=lambda item: (item.image,),
                name=lambda item: str(item.image.key),
                size=lambda item: len(item.captions),
            )
        self.bad.require(images, str(paths[0]))
        return retrieval_examples(images, str(paths[0]), self.bad.first_left_out)

    def _images(self, path: Path) -> Iterator[CaptionedImage]:
        for row, entry in enumerate(read_rows(path, _COLUMNS)):
            where = f"{path}: row {row} ({entry['image_id']})"
            try:
                self._check_image_id(entry, where)
                if not entry["caption"]:
                    raise ValueError(f"{where} has no captions; it needs one or more")
            except ValueError as error:
                self.bad.report(error, len(entry["caption"] or [None]))
                continue
            captions = tuple(self._captions(entry["caption"], where))
            if not captions:  # all of them were reported
                continue
            ids = tuple(next(self._caption_ids) for _ in captions)
            yield CaptionedImage(ArrowImage(path, row), next(self._image_ids), captions, ids, ((),) * len(captions))

    def _check_image_id(self, entry: dict[str, Any], where: str) -> None:
        if not entry["image_id"]:
            raise ValueError(f"{where} has no image_id; it must be the name of its image")
        before = self._seen.setdefault(entry["image_id"], where)
        if before != where:
            raise ValueError(f"{where} repeats the image of {before}; every one must occur once")

    def _captions(self, texts: list[str | None], where: str) -> Iterator[str]:
        """The good captions, with single spaces."""
        for number, text in enumerate(texts):
            try:
                check_text(text, f"{where}: caption[{number}]")
            except ValueError as error:
                self.bad.report(error)
                continue
            yield " ".join((text or "").split())
