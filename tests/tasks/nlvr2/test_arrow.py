"""NLVR2 from arrow tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from das_gym.data.arrow import ArrowImage
from das_gym.data.cache import CACHE_VARIABLE
from das_gym.tasks.nlvr2.arrow import load_arrow_nlvr2
from das_gym.tasks.nlvr2.files import NLVR2Example
from tests.arrow_tables import nlvr2_row, write_nlvr2, write_table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return write_nlvr2(tmp_path / "tables")


def test_load_arrow_nlvr2(folder: Path):
    splits = load_arrow_nlvr2(folder)
    path = folder / "nlvr2_test1.arrow"
    images = (ArrowImage(path, 1, "image_0"), ArrowImage(path, 1, "image_1"))
    assert len(splits.test) == 4
    assert splits.test[2] == NLVR2Example("test1-3-1-0", "Both are grey.", images, True)
    train, reward = ({e.identifier.split("-")[1] for e in part} for part in (splits.train, splits.reward))
    assert (len(train), len(reward), train & reward) == (18, 2, set())  # whole image sets
    assert len(splits.train) + len(splits.reward) == 80


def test_dev_is_the_test_split_without_test1(folder: Path):
    (folder / "nlvr2_test1.arrow").unlink()
    assert {e.identifier.split("-")[0] for e in load_arrow_nlvr2(folder).test} == {"dev"}
    (folder / "nlvr2_dev.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"nlvr2_test1\.arrow"):
        load_arrow_nlvr2(folder)


@pytest.mark.parametrize("rows", [[], [nlvr2_row("train-1-0"), nlvr2_row("train-1-1")]])
def test_train_needs_two_image_sets(folder: Path, rows: list[dict[str, Any]]):
    write_table(folder / "nlvr2_train.arrow", rows)
    with pytest.raises(ValueError, match=r"nlvr2_train\.arrow"):
        load_arrow_nlvr2(folder)


BAD_ROWS: list[tuple[dict[str, Any], str, int]] = [
    ({"identifier": "dev-3"}, r"row 0, entry 0: wrong `identifier`", 2),
    ({"identifier": None}, r"row 0, entry 0: wrong `identifier`", 2),
    ({"answers": ["True"]}, r"row 0: lists of different lengths", 2),
    ({"answers": ["True", "maybe"]}, r"row 0, entry 1 .*`answers`", 1),
    ({"questions": ["A.", " "]}, r"row 0, entry 1 .*`questions` is empty", 1),
    ({"questions": ["A.", "A."]}, r"row 0, entry 1 repeats `sentence`", 1),
    ({"image_1": b"no image"}, r"test1-3-0-0: image_1 in row 0 of .* cannot be read", 2),
]


@pytest.mark.parametrize(("changes", "message", "skipped"), BAD_ROWS)
def test_bad_entry_is_named_or_skipped(folder: Path, changes: dict[str, Any], message: str, skipped: int):
    write_table(folder / "nlvr2_test1.arrow", [nlvr2_row("test1-3-0", **changes), nlvr2_row("test1-3-1")])
    if "image_1" not in changes:  # damage of an image is found when it is opened
        with pytest.raises(ValueError, match=rf"nlvr2_test1\.arrow: {message}"):
            load_arrow_nlvr2(folder)
    splits = load_arrow_nlvr2(folder, on_bad_example="skip")
    assert (len(splits.test), splits.left_out_count) == (4 - skipped, skipped)
