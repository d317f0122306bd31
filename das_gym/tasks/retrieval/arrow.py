"""Read Flickr30k and COCO captions, as Karpathy split them, from arrow tables.

A row is an image with its captions. `{prefix}_train.arrow`, with `{prefix}_restval.arrow` where it exists, is for training;
`{prefix}_val.arrow` is the reward split; `{prefix}_test.arrow` is the test split. The tables lack the numbers of images and
captions, which are counted here in this order.
"""

from __future__ import annotations

from itertools import count, groupby
from pathlib import Path
from typing import Any

from das_gym.data.arrow import ArrowFormat, read_items, require_table
from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import check_new, check_text
from das_gym.data.splits import Splits
from das_gym.data.tables import CellImage
from das_gym.tasks.retrieval.captions import CaptionedImage, RetrievalExample, retrieval_examples

TABLES = ArrowFormat(
    "retrieval",
    prefixes=("f30k_caption_karpathy", "coco_caption_karpathy"),
    columns={"image": "bytes", "caption": "list of text", "image_id": "text"},
)


def load_arrow_captions(data_root: str | Path, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
    """Read the tables, an example for each caption; arguments and errors are those of `Task.load_splits`."""
    tables, bad = TABLES.find(data_root), BadExamples(on_bad_example)
    image_ids, caption_ids, seen = count(), count(), dict[str, str]()

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
    return bad.splits(examples_in(train, *restval), examples_in(reward), examples_in(test))
