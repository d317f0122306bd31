"""Image-text retrieval: which of 16 texts is true of an image?

Flickr30k, COCO captions, and any data set in Karpathy's format are read from his files or from arrow tables.

A data root holds `dataset_flickr30k.json`, `dataset_coco.json` or another `dataset*.json`, itself or in a folder `karpathy`,
and the images under their official names in one of `FOLDERS`, COCO's in the folder that their entry names (`filepath`).
Where there are several JSON files, pass one of them as the data root.

Arrow tables are `{prefix}_train.arrow`, optionally `{prefix}_restval.arrow`, `{prefix}_val.arrow` and `{prefix}_test.arrow`.
A row is an image with its captions, which are numbered in this order.

Train and `restval` are for training, val is the reward split, test is the test split: 29,000 / 1,014 / 1,000 images of
Flickr30k, 113,287 / 5,000 / 5,000 of COCO.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.arrow_format import ArrowFormat, require_table
from das_gym.data.entries import (
    BadExamples,
    Fields,
    check_fields,
    check_text,
    check_unique,
    describe_folder,
    read_list,
)
from das_gym.data.images import FolderListings, ImageFile, ImageSource, OneImage
from das_gym.data.rows import CellImage
from das_gym.data.splits import Splits
from das_gym.files import absolute_path
from das_gym.models.inputs import Pair
from das_gym.shapes import bundled_root
from das_gym.tasks.base import Gallery, Task, load_head

NUM_TEXTS = 16
"""Texts of an example: a true one and 15 false ones, as in the code of METER and ViLT."""

SPLITS = {"train": "train", "restval": "train", "val": "reward", "test": "test"}

FOLDERS = ("flickr30k-images", "images", "")

TABLES = ArrowFormat(
    "retrieval",
    prefixes=("f30k_caption_karpathy", "coco_caption_karpathy"),
    fields={"image_id": str},
    lists={"caption": str},
)

_IMAGE_FIELDS: Fields = {"filename": str, "split": str, "imgid": int, "sentences": list}
_SENTENCE_FIELDS: Fields = {"raw": str, "sentid": int}

MATCHING_HEAD = "itm_score"
"""The image-text-matching head in checkpoints: row 0 of its logits is no match, row 1 a match."""


@dataclass(frozen=True, slots=True)
class CaptionedImage(OneImage):
    """An image with its captions, and for each of these false texts that differ little from it, if there are any."""

    image: ImageSource
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    hard_negatives: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class RetrievalExample(OneImage):
    """An image and 16 texts, of which one is true.

    The false texts are the caption's hard negatives, if any, and captions of other images of the split. They follow from
    `key` and the captions of the split alone, so they never change, and are computed on access to save memory.

    Attributes:
        key: The data set's own number of the caption, unique in the data set.
        image: The image.
        image_id: The data set's own number of the image.
        caption: The true text.
        own: All captions of the image: none of them is false.
        hard_negatives: False texts that are always among the 16.
        pool: The distinct captions of the split.
    """

    key: str
    image: ImageSource
    image_id: int
    caption: str
    own: tuple[str, ...]
    hard_negatives: tuple[str, ...] = ()
    pool: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """NUM_TEXTS distinct texts, the true one first."""
        chosen = dict.fromkeys((self.caption, *self.hard_negatives[: NUM_TEXTS - 1]))
        draws = _draws(self.key, len(self.pool))
        while len(chosen) < NUM_TEXTS:  # two images may share a caption, so that a draw can be true
            text = self.pool[next(draws)]
            if text not in self.own:
                chosen.setdefault(text)
        return tuple(chosen)


def _draws(key: str, count: int) -> Iterator[int]:
    """Yield endless numbers below `count`: four bytes each of BLAKE2b hashes of the key and a counter, the same for ever."""
    block = 0  # hashes, since generators of random numbers may change with Python's or numpy's version
    while True:
        digest = hashlib.blake2b(f"{key} {block}".encode()).digest()
        yield from (int.from_bytes(digest[start : start + 4], "little") % count for start in range(0, len(digest), 4))
        block += 1


def retrieval_examples(images: Sequence[CaptionedImage], source: str, skipped: str = "") -> tuple[RetrievalExample, ...]:
    """Return an example for each caption of a split, in order; the ValueError for too few captions names `source`."""
    pool = tuple(dict.fromkeys(caption for image in images for caption in image.captions))
    others = len(pool) - max((len(set(image.captions)) for image in images), default=0)
    if others < NUM_TEXTS - 1:
        raise ValueError(
            f"{source} has too few captions: got {len(images)} images that leave {max(others, 0)} captions of other images, "
            f"expected {NUM_TEXTS - 1} distinct ones as the false texts of an example. Add images with captions{skipped}"
        )
    return tuple(
        RetrievalExample(str(caption_id), image.image, image.image_id, caption, image.captions, hard, pool)
        for image in images
        for caption, caption_id, hard in zip(image.captions, image.caption_ids, image.hard_negatives, strict=True)
    )


def load_captions(data_root: str | Path, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
    """Read files or tables, an example for each caption; arguments and errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    if TABLES.is_in(data_root):
        return _load_tables(TABLES.find(data_root), bad)
    path, root = _find_file(absolute_path(data_root))
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
    if root.is_file():
        return root, root.parent.parent if root.parent.name == "karpathy" else root.parent
    found = caption_files(root)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ValueError(f"{root} holds several data sets: got {names}. Pass one of these files as `data_root`")
    if not found:
        content = describe_folder(root) if root.is_dir() else "no folder"
        raise FileNotFoundError(
            f"{root} has no dataset_flickr30k.json or dataset_coco.json, nor has karpathy/: got {content}"
        )
    return found[0], root


def caption_files(root: Path) -> list[Path]:
    """Return the JSON files of Karpathy's splits in a data root."""
    return sorted(path for folder in (root, root / "karpathy") for path in folder.glob("dataset*.json"))


class _Reader:
    """Makes captioned images of entries, whose files lie in `root`; `split_of` has our split of each image id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.split_of: dict[int, str] = {}
        self._listings = FolderListings()
        self._seen: defaultdict[str, dict[Any, str]] = defaultdict(dict)

    def image(self, entry: Any, where: str) -> CaptionedImage:
        check_fields(entry, _IMAGE_FIELDS, where)
        filename = entry["filename"]
        folder = entry.get("filepath") or ""
        imgid = entry["imgid"]
        for name in ("filename", "filepath") if folder else ("filename",):
            if "\0" in check_text(entry[name], f"{where}: `{name}`"):
                raise ValueError(f"{where}: wrong `{name}`: got {entry[name]!r:.60}, expected the name of a file")
        where += f" ({filename})"
        if entry["split"] not in SPLITS:
            raise ValueError(f"{where}: wrong `split`: got {entry['split']!r:.60}, expected {', '.join(SPLITS)}")
        file = self._find(filename, folder)
        check_unique(self._seen["imgid"], imgid, "imgid", where)
        check_unique(self._seen["image"], str(file), "image", where)
        if not entry["sentences"]:
            raise ValueError(f"{where} has no captions, expected one or more in `sentences`")
        sentences = entry["sentences"]
        own = {" ".join(str(sentence.get("raw")).split()) for sentence in sentences if isinstance(sentence, dict)}
        captions = [self._caption(one, own, f"{where}: sentences[{number}]") for number, one in enumerate(sentences)]
        self.split_of[imgid] = SPLITS[entry["split"]]
        texts, ids, hard = zip(*captions, strict=True)
        return CaptionedImage(ImageFile(file), imgid, texts, ids, hard)

    def _caption(self, sentence: Any, own: set[str], where: str) -> tuple[str, int, tuple[str, ...]]:
        check_fields(sentence, _SENTENCE_FIELDS, where)
        text = " ".join(check_text(sentence["raw"], f"{where}: `raw`").split())
        negatives = sentence.get("hard_negatives", [])
        if not isinstance(negatives, list):
            raise ValueError(f"{where}: wrong `hard_negatives`: got {negatives!r:.60}, expected a list of texts")
        hard = dict.fromkeys(" ".join(check_text(each, f"{where}: `hard_negatives`").split()) for each in negatives)
        if true := own.intersection(hard):
            raise ValueError(f"{where}: wrong `hard_negatives`: got {true.pop()!r}, which is a caption of the image")
        check_unique(self._seen["sentid"], sentence["sentid"], "sentid", where)
        return text, sentence["sentid"], tuple(hard)

    def _find(self, filename: str, folder: str) -> Path:
        paths = [self.root / base / folder / filename for base in (FOLDERS[::-1] if folder else FOLDERS)]
        paths += [self.root / base / filename for base in FOLDERS if folder]
        return self._listings.first_existing(paths)


def _load_tables(tables: Mapping[str, Path], bad: BadExamples) -> Splits[RetrievalExample]:
    image_ids = count()
    caption_ids = count()
    seen = dict[str, str]()

    def checked(item: dict[str, Any], where: str) -> dict[str, Any]:
        check_fields(item, TABLES.lists, where)
        check_unique(seen, item["image_id"], "image_id", where.rpartition(",")[0])
        return {**item, "caption": " ".join(check_text(item["caption"], f"{where}: `caption`").split())}

    def images_in(path: Path) -> list[CaptionedImage]:
        images = []
        for row, items in groupby(bad.parse(TABLES.entries(path, bad), checked), lambda item: item["row"]):
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


def build_rank_head(feature_size: int) -> nn.Sequential:
    """Return a linear layer to one score: (..., n, feature_size) to (..., n) logits."""
    linear = nn.Linear(feature_size, 1)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Flatten(-2))


class RetrievalTask(Task):
    """Retrieval as METER and ViLT train for it: rank a true text, whose score is the first logit, before 15 false ones.

    `das_gym.engine.ranking` measures the recall among thousands of texts with the same head.
    """

    name = "retrieval"
    pretrained_head = "rank_output"
    metric_name = "ranked_first"
    passes = NUM_TEXTS
    reward_examples = 64  # 1,024 pairs

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
        """Read Karpathy's files, or arrow tables; None is Shapes-captions."""
        return load_captions(bundled_root("captions") if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        return "Karpathy's captions" if caption_files(root) or TABLES.is_in(root) else ""

    def pairs(self, examples: Sequence[RetrievalExample]) -> list[Pair]:
        """Return each image with its 16 texts, the true one first."""
        return [Pair(text, example.image) for example in examples for text in example.texts]

    def question(self, example: RetrievalExample) -> str:
        """Ask which of the texts is true."""
        return f"Which of {len(example.texts)} texts is true of the image?"

    def reference(self, example: RetrievalExample) -> str:
        return example.texts[0]

    def format_prediction(self, example: RetrievalExample, prediction: Mapping[str, Any]) -> str:
        """Return the text with the highest score."""
        return example.texts[prediction["prediction"]]

    def targets(self, examples: Sequence[RetrievalExample]) -> dict[str, Tensor]:
        """Return `true`: (batch,) int64 zeros, the position of the true text."""
        return {"true": torch.zeros(len(examples), dtype=torch.long)}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Return a new rank output, which has no hidden layer."""
        return build_rank_head(feature_size)

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Initialize from `rank_output`: the checkpoint's own, or the match row of its image-text-matching head."""
        if self.pretrained_head in heads:
            load_head(
                head, self.pretrained_head, {f"0.{name}": tensor for name, tensor in heads[self.pretrained_head].items()}
            )

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy of the true text among the 16, (batch,), in nats: the ranking loss of METER and ViLT."""
        return F.cross_entropy(logits, targets["true"], reduction="none")

    def matching_loss(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return `matching_losses` with the checkpoint's frozen `itm_score`; ValueError if it has none."""
        if MATCHING_HEAD not in heads:
            got = ", ".join(sorted(heads)) or "none"
            raise ValueError(f"`itm_weight` needs the head {MATCHING_HEAD} in the checkpoint: got {got}. Use `itm_weight=0`")
        head = heads[MATCHING_HEAD]
        return partial(matching_losses, weight=head["weight"], bias=head["bias"])

    def chance(self, examples: Sequence[RetrievalExample]) -> float:
        return 1 / NUM_TEXTS

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return 1 where the true text has a larger score than every other, else 0; (batch,)."""
        # Strictly larger: a diverged model, whose scores are all equal or NaN, ranks nothing first.
        is_true = F.one_hot(targets["true"], logits.shape[-1]).bool()
        return (logits[is_true] > logits.masked_fill(is_true, -torch.inf).amax(-1)).to(logits)

    @classmethod
    def gallery(cls, examples: Sequence[RetrievalExample], max_images: int | None = None) -> Gallery:
        """Return each image of the examples once, with all captions, in order; ValueError for `max_images` below 1."""
        if max_images is not None and max_images < 1:
            raise ValueError(f"wrong `max_images`: got {max_images}, expected 1 or more, or None for all")
        found = {example.image_id: example for example in examples}
        chosen = list(found.values())[:max_images]
        texts = [(number, text) for number, example in enumerate(chosen) for text in example.own]
        return Gallery(
            tuple(example.image for example in chosen),
            tuple(text for _, text in texts),
            np.array([number for number, _ in texts], dtype=np.int64),
        )


def matching_losses(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the cross-entropy of matching, (batch,), in nats: half of the true pair, half of the mean of the false pairs.

    The (batch * NUM_TEXTS, feature_size) features are example by example, the true text first. METER's code draws one pair
    per example at every step; this is its expected value, except that its false pairs have another image.
    """
    logits = F.linear(pooled, weight.to(pooled), bias.to(pooled)).unflatten(0, (-1, NUM_TEXTS))
    no, yes = (-logits.log_softmax(-1)).unbind(-1)
    return (yes[:, 0] + no[:, 1:].mean(-1)) / 2
