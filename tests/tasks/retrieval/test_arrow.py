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


def test_load_arrow_captions(folder: Path):
    splits = load_arrow_captions(folder)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [30, 25, 25]
    example = splits.reward[6]
    assert (example.key, example.image_id, example.caption) == ("36", 7, "Caption 1 of val1.")
    assert example.image == ArrowImage(folder / VAL, 1)
    assert len(example.texts) == NUM_TEXTS
    assert len({e.key for part in (splits.train, splits.reward, splits.test) for e in part}) == 80


def test_coco_trains_on_restval_too(tmp_path: Path):
    folder = write_captions(tmp_path, "coco_caption_karpathy")
    write_table(folder / "coco_caption_karpathy_restval.arrow", [caption_row("rest0"), caption_row("rest1")])
    train = load_arrow_captions(folder).train
    assert (len(train), train[-1].caption) == (40, "Caption 4 of rest1.")


# What is changed, the message, how many examples are missing, and how many are counted
BAD_ROWS: list[tuple[dict[str, Any], str, int, int]] = [
    ({"image_id": None}, r"row 2, entry 0 has no `image_id`", 5, 5),
    ({"image_id": "train0.jpg"}, r"row 2 repeats `image_id` train0\.jpg of .*train\.arrow: row 0", 5, 5),
    ({"caption": []}, r"row 2: lists", 5, 1),
    ({"caption": ["One.", " ", "Three."]}, r"row 2, entry 1: `caption` is empty", 3, 1),
    ({"caption": ["", " "]}, r"row 2, entry 0: `caption` is empty", 5, 2),
    ({"image": b""}, r"image in row 2 of .* cannot be read", 5, 5),
]


@pytest.mark.parametrize(("changes", "message", "fewer", "count"), BAD_ROWS)
def test_bad_entry_is_named_or_skipped(folder: Path, changes: dict[str, Any], message: str, fewer: int, count: int):
    rows = [caption_row(f"v{n}") for n in range(6)]
    rows[2] = caption_row("x", **changes)
    write_table(folder / VAL, rows)
    if "image" not in changes:  # damage of an image is found when it is opened
        with pytest.raises(ValueError, match=message):
            load_arrow_captions(folder)
    splits = load_arrow_captions(folder, on_bad_example="skip")
    assert re.search(message, splits.left_out[0])
    assert (len(splits.reward), splits.left_out_count) == (30 - fewer, count)
