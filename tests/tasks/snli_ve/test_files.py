"""SNLI-VE's reader on folders in the official layout, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.tasks.snli_ve.files import LABELS, load_snli_ve

Entry = dict[str, Any]


def entry(image: str, number: int, label: str) -> Entry:
    """An official entry, with unused keys."""
    return {
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#0",
        "gold_label": label,
        "pairID": f"{image}.jpg#0r{number}",
        "sentence1": "A heron.",
        "sentence2": f"{label} of {image}. ",
        "Flickr30K_ID": image,
    }


def write(root: Path, images: str = "flickr30k_images", above: str = "") -> Path:
    """Two images with four pairs each in train, of which one is undecided, one image in dev and in test."""
    (root / images).mkdir(parents=True)
    (root / above).mkdir(exist_ok=True)
    for part, names in {"train": ("11", "12"), "dev": ("21",), "test": ("31",)}.items():
        rows = [entry(name, n, label) for name in names for n, label in enumerate((*LABELS[::-1], "-"))]
        (root / above / f"snli_ve_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in names:
            Image.new("RGB", (12, 8), (int(name), 90, 30)).save(root / images / f"{name}.jpg")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


def change(path: Path, edit: Callable[[Entry], object]) -> None:
    """Edit the second entry of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows[1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_load_snli_ve_leaves_out_undecided_pairs(root: Path):
    splits = load_snli_ve(root)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [6, 3, 3]
    assert [LABELS[example.label] for example in splits.reward] == ["entailment", "neutral", "contradiction"]
    first = splits.train[0]
    assert (first.key, first.hypothesis) == ("11.jpg#0r0", "entailment of 11.")
    assert first.image == ImageFile(root / "flickr30k_images" / "11.jpg")
    assert first.image is splits.train[2].image
    assert first.image.open().size == (12, 8)


@pytest.mark.parametrize(
    ("images", "above"), [("flickr30k-images", ""), ("Flickr30K/images", ""), ("images", "data"), ("", "data")]
)
def test_folders_of_images_are_found(tmp_path: Path, images: str, above: str):
    splits = load_snli_ve(write(tmp_path / "root", images, above))
    assert splits.test[0].image.open().size == (12, 8)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda e: e.pop("sentence2"), r"line 2 has no `sentence2`"),
        (lambda e: e.update(Flickr30K_ID="../21"), r"line 2: wrong `Flickr30K_ID`"),
        (lambda e: e.update(sentence2=" "), r"line 2: `sentence2` is empty"),
        (lambda e: e.update(gold_label="yes"), r"line 2: wrong `gold_label`"),
        (lambda e: e.update(pairID="11.jpg#0r0"), r"repeats `pairID` 11.jpg#0r0 of .*train\.jsonl: line 1"),
    ],
)
def test_bad_entry_is_named_or_skipped(root: Path, edit: Callable[[Entry], object], text: str):
    change(root / "snli_ve_dev.jsonl", edit)
    with pytest.raises(ValueError, match=text):
        load_snli_ve(root)
    splits = load_snli_ve(root, "skip")
    assert (len(splits.reward), len(splits.left_out)) == (2, 1)
