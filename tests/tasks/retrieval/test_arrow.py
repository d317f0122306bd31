"""Captioned images from arrow tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from das_gym.data.arrow import ArrowImage
from das_gym.data.cache import CACHE_VARIABLE
from das_gym.tasks.retrieval.arrow import load_arrow_captions
from das_gym.tasks.retrieval.captions import NUM_TEXTS
from tests.arrow_tables import caption_row, write_captions, write_table

VAL = "f30k_caption_karpathy_val.arrow"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return write_captions(tmp_path / "tables")


def test_captions_by_hand(folder: Path):
    splits = load_arrow_captions(folder)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [30, 25, 25]
    example = splits.reward[6]
    assert (example.key, example.image_id, example.caption) == ("36", 7, "Caption 1 of val1.")
    assert example.image == ArrowImage(folder / VAL, 1)
    assert len(example.texts) == NUM_TEXTS
    keys = [e.key for part in (splits.train, splits.reward, splits.test) for e in part]
    assert len(set(keys)) == 80


def test_coco_trains_on_restval_too(tmp_path: Path):
    prefix = "coco_caption_karpathy"
    folder = write_captions(tmp_path, prefix)
    write_table(folder / f"{prefix}_restval.arrow", [caption_row("rest0"), caption_row("rest1")])
    train = load_arrow_captions(folder).train
    assert len(train) == 40
    assert train[-1].caption == "Caption 4 of rest1."


def test_each_split_needs_its_table(folder: Path):
    (folder / VAL).unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no table .*{VAL}; of f30k_caption_karpathy there is: f30k_"):
        load_arrow_captions(folder)


# What is changed, what is said, how many examples there are less than usually, and how many were left out
BAD_ROWS: list[tuple[dict[str, Any], str, int, int]] = [
    ({"image_id": None}, r"row 2 \(None\) has no image_id", 5, 5),
    ({"image_id": "train0.jpg"}, r"row 2 \(train0\.jpg\) repeats the image of .*train\.arrow: row 0 \(train0\.jpg\)", 5, 5),
    ({"caption": []}, r"row 2 \(x\.jpg\) has no captions", 5, 1),
    ({"caption": ["One.", " ", "Three."]}, r"row 2 \(x\.jpg\): caption\[1\] is empty", 3, 1),
    ({"caption": ["", " "]}, r"row 2 \(x\.jpg\): caption\[0\] is empty", 5, 2),
    ({"image": b""}, r"image in row 2 of .* cannot be read", 5, 5),
]


@pytest.mark.parametrize(("changes", "message", "fewer", "count"), BAD_ROWS)
def test_a_bad_entry_is_named_or_left_out(folder: Path, changes: dict[str, Any], message: str, fewer: int, count: int):
    rows = [caption_row(f"v{n}") for n in range(6)]
    rows[2] = caption_row("x", **changes)
    write_table(folder / VAL, rows)
    if "image" not in changes:  # what an image holds is seen when it is opened
        with pytest.raises(ValueError, match=rf"{message}.*; or pass on_bad_example=\"skip\""):
            load_arrow_captions(folder)
    splits = load_arrow_captions(folder, on_bad_example="skip")
    assert re.search(message, splits.left_out[0])
    assert len(splits.reward) == 30 - fewer
    assert splits.left_out_count == count
