"""Reads Flickr30k, COCO captions, and any data set in Karpathy's format.

A data root holds `dataset_flickr30k.json` (or `dataset_coco.json`, or another `dataset*.json`), itself or in a folder
`karpathy`, and the images, under their official names, in `flickr30k-images`, in `images` or in the data root itself.
COCO's images lie in the folder that their entry names (`filepath`: `train2014`, `val2014`), in the data root or in
`images`. Where there are several JSON files, name one of them as the data root.

What works: Flickr30k (29,000 / 1,014 / 1,000 images) and COCO (113,287 / 5,000 / 5,000, its `restval` counted as train)
as Karpathy split them; Flickr8k with its images in `images`. Train trains, val scores masks (reward), test is reported.
Each of the three needs at least 4 images of 5 captions: an example has 15 captions of other images as its false texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_fields, check_text
from das_gym.data.entries import read_whole_json
from das_gym.data.images import ImageFile, Listings
from das_gym.data.splits import Splits
from das_gym.files import absolute
from das_gym.tasks.retrieval.captions import CaptionedImage, RetrievalExample, retrieval_examples

SPLITS = {"train": "train", "restval": "train", "val": "reward", "test": "test"}
"""Karpathy's splits, and ours."""

FOLDERS = ("flickr30k-images", "images", "")
"""Where images are looked for, in the data root."""

_IMAGE_FIELDS: dict[str, type] = {"filename": str, "split": str, "imgid": int, "sentences": list}
_SENTENCE_FIELDS: dict[str, type] = {"raw": str, "sentid": int}


def load_flickr30k(data_root: str | Path, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
    """Read a data set in Karpathy's format.

    Args:
        data_root: The folder described at the top of this module, or the JSON file in it.
        on_bad_example: `raise`, or `skip`: leave out what is bad, a caption or an image with all its captions.

    Returns:
        The three splits, an example for each caption, in the file's order.

    Raises:
        FileNotFoundError: The folder, its JSON file or an image is missing.
        ValueError: The file is damaged or does not fit its format, or a split is empty or too small.
    """
    path, root = _find_file(absolute(data_root))
    bad = BadExamples(on_bad_example)
    read = list(_read_images(path, root, bad))
    images = bad.drop_broken(
        [image for _, image in read],
        images=lambda item: (item.image,),
        name=lambda item: f"{path}: imgid {item.image_id}",
        size=lambda item: len(item.captions),
    )
    split_of = {image.image_id: split for split, image in read}
    examples = {}
    for split in ("train", "reward", "test"):
        theirs = " or ".join(repr(name) for name, ours in SPLITS.items() if ours == split)
        what = f"the {split} split ({path}: images whose split is {theirs})"
        chosen = [image for image in images if split_of[image.image_id] == split]
        bad.require(chosen, what)
        examples[split] = retrieval_examples(chosen, what, bad.first_left_out)
    return Splits(examples["train"], examples["reward"], examples["test"], bad.lines, bad.count)


def _find_file(root: Path) -> tuple[Path, Path]:
    """The JSON file of a data root, and the folder that images are looked for in."""
    if root.is_file():
        return root, root.parent.parent if root.parent.name == "karpathy" else root.parent
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_root={str(root)!r} is no folder; name the one with dataset_flickr30k.json and the images, or that file"
        )
    found = sorted(path for folder in (root, root / "karpathy") for path in folder.glob("dataset*.json"))
    if len(found) == 1:
        return found[0], root
    if found:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ValueError(f"{root} has several data sets: {names}; pass one of these files as data_root")
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{root} has no dataset_flickr30k.json or dataset_coco.json, nor has a folder karpathy in it; it holds {there}"
    )


def _read_images(path: Path, root: Path, bad: BadExamples) -> Iterator[tuple[str, CaptionedImage]]:
    """Our split and the content of every good entry; bad ones are reported."""
    folders, seen = _Folders(root), _Seen()
    for index, entry in enumerate(_read_entries(path)):
        where = f"{path}: images[{index}]"
        try:
            check_fields(entry, _IMAGE_FIELDS, where)
            inner = _checked_folder(entry, where)
            where += f" ({entry['filename']})"
            file = _checked_image(entry, folders.find(entry["filename"], inner), where, seen)
        except ValueError as error:
            bad.report(error, _captions_of(entry))
            continue
        captions = list(_read_captions(entry["sentences"], where, bad, seen))
        if captions:  # else all of them were reported
            texts, ids, hard = zip(*captions, strict=True)
            yield SPLITS[entry["split"]], CaptionedImage(ImageFile(file), entry["imgid"], texts, ids, hard)


def _checked_folder(entry: dict[str, Any], where: str) -> str:
    """The folder that an entry names, if it does; it and the file's name can be such names."""
    names = {name: entry[name] for name in ("filename", "filepath") if isinstance(entry.get(name), str)}
    if not names.get("filepath"):
        names.pop("filepath", None)
    for name, value in names.items():
        check_text(value, f"{where}: {name}")
        if "\0" in value:
            raise ValueError(f"{where} has {name}={value!r:.60}, which nothing can be called; write the name of the image")
    return names.get("filepath", "")


def _checked_image(entry: dict[str, Any], file: Path, where: str, seen: _Seen) -> Path:
    """The file, if the image is neither repeated nor without captions."""
    if entry["split"] not in SPLITS:
        raise ValueError(f"{where} has the split {entry['split']!r}; known are {', '.join(SPLITS)}")
    seen.add("imgid", entry["imgid"], where)
    seen.add("image", str(file), where)
    if not entry["sentences"]:
        raise ValueError(f"{where} has no captions; its list 'sentences' needs at least one")
    return file


def _captions_of(entry: object) -> int:
    """How many examples a bad entry would have been; 1 where that cannot be told."""
    sentences = entry.get("sentences") if isinstance(entry, dict) else None
    return max(1, len(sentences)) if isinstance(sentences, list) else 1


def _read_entries(path: Path) -> list[Any]:
    """The list `images` of the file."""
    whole = read_whole_json(path)
    if not isinstance(whole, dict) or not isinstance(whole.get("images"), list):
        raise ValueError(
            f"{path} is not in Karpathy's format: its outermost part must be an object with a list named 'images'"
        )
    return whole["images"]


def _read_captions(
    sentences: list[Any], where: str, bad: BadExamples, seen: _Seen
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Text, sentid and hard negatives of every good caption; bad ones are reported."""
    own = {" ".join(str(s.get("raw")).split()) for s in sentences if isinstance(s, dict)}
    for number, sentence in enumerate(sentences):
        here = f"{where}: sentences[{number}]"
        try:
            check_fields(sentence, _SENTENCE_FIELDS, here)
            text = " ".join(sentence["raw"].split())
            check_text(text, f"{here}: raw")
            hard = _read_hard_negatives(sentence.get("hard_negatives", []), own, here)
            seen.add("sentid", sentence["sentid"], here)
        except ValueError as error:
            bad.report(error)
            continue
        yield text, sentence["sentid"], hard


def _read_hard_negatives(texts: object, own: set[str], here: str) -> tuple[str, ...]:
    """The texts, all of them texts, none of them a caption of the image."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{here} has hard_negatives={texts!r:.60}; it must be a list of texts")
    for text in texts:
        check_text(text, f"{here}: hard_negatives")
    hard = tuple(dict.fromkeys(" ".join(text.split()) for text in texts))
    true = own.intersection(hard)
    if true:
        raise ValueError(f"{here} has the hard negative {true.pop()!r}, which is a caption of the image, and so not false")
    return hard


class _Seen:
    """Which numbers and files occurred, and where."""

    def __init__(self) -> None:
        self._where: dict[tuple[str, int | str], str] = {}

    def add(self, kind: str, value: int | str, where: str) -> None:
        """Remember it.

        Raises:
            ValueError: It occurred before.
        """
        before = self._where.setdefault((kind, value), where)
        if before is not where:
            raise ValueError(f"{where} repeats {kind} {value} of {before}; every one must occur once: delete one")


class _Folders:
    """Where images lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings = Listings()

    def find(self, filename: str, inner: str) -> Path:
        """The image's path; where there is none, the path at which it is looked for first."""
        paths = [self.root / folder / inner / filename for folder in (FOLDERS[::-1] if inner else FOLDERS)]
        paths += [self.root / folder / filename for folder in FOLDERS if inner]
        return self._listings.first_of(paths)
