"""NLVR2 from arrow tables."""

from __future__ import annotations

import re
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


def test_a_sentence_by_hand(folder: Path):
    path = folder / "nlvr2_test1.arrow"
    test = load_arrow_nlvr2(folder).test
    assert len(test) == 4
    images = (ArrowImage(path, 1, "image_0"), ArrowImage(path, 1, "image_1"))
    assert test[2] == NLVR2Example("test1-3-1-0", "Both are grey.", images, True)
    assert (test[3].identifier, test[3].label) == ("test1-3-1-1", False)


def test_a_sentence_has_one_number_in_all_pairs_of_its_set(folder: Path):
    rows = [nlvr2_row("dev-3-0", questions=["a", "b"]), nlvr2_row("dev-3-1", questions=["b", "c"]), nlvr2_row("dev-4-0")]
    write_table(folder / "nlvr2_test1.arrow", rows)
    test = load_arrow_nlvr2(folder).test
    assert [e.identifier for e in test[:4]] == ["dev-3-0-0", "dev-3-0-1", "dev-3-1-1", "dev-3-1-2"]
    assert test[1].set_id == test[2].set_id != test[4].set_id


def test_whole_image_sets_score_masks(folder: Path):
    splits = load_arrow_nlvr2(folder)
    train, reward = ({e.identifier.split("-")[1] for e in part} for part in (splits.train, splits.reward))
    assert (len(train), len(reward), train & reward) == (18, 2, set())
    assert len(splits.train) + len(splits.reward) == 80


def test_dev_is_test_where_there_is_no_test1(folder: Path):
    (folder / "nlvr2_test1.arrow").unlink()
    assert {e.identifier.split("-")[0] for e in load_arrow_nlvr2(folder).test} == {"dev"}
    (folder / "nlvr2_dev.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no table .*nlvr2_test1\.arrow; of nlvr2 there is: nlvr2_train"):
        load_arrow_nlvr2(folder)


def test_one_image_set_cannot_be_divided(folder: Path):
    write_table(folder / "nlvr2_train.arrow", [nlvr2_row("train-1-0"), nlvr2_row("train-1-1")])
    with pytest.raises(ValueError, match=r"nlvr2_train\.arrow: all rows are of the image set train-1"):
        load_arrow_nlvr2(folder)


BAD_ROWS: list[tuple[dict[str, Any], str, int]] = [
    ({"identifier": "dev-3"}, r"row 0 has the identifier 'dev-3'; it must be split-set-pair", 2),
    ({"identifier": None}, r"row 0 has the identifier ''", 2),
    ({"answers": ["True"]}, r"row 0 \(test1-3-0\) has 2 questions and 1 answers", 2),
    ({"answers": ["True", "maybe"]}, r"row 0 \(test1-3-0\): questions\[1\] has the answer 'maybe'", 1),
    ({"questions": ["A.", " "]}, r"row 0 \(test1-3-0\): questions\[1\] is empty", 1),
    ({"questions": ["A.", "A."]}, r"row 0 \(test1-3-0\): questions\[1\] repeats the sentence of .*questions\[0\]", 1),
    ({"image_1": b"no image"}, r"test1-3-0-0: image_1 in row 0 of .* cannot be read", 2),
]


@pytest.mark.parametrize(("changes", "message", "left_out"), BAD_ROWS)
def test_a_bad_entry_is_named_or_left_out(folder: Path, changes: dict[str, Any], message: str, left_out: int):
    write_table(folder / "nlvr2_test1.arrow", [nlvr2_row("test1-3-0", **changes), nlvr2_row("test1-3-1")])
    if "image_1" not in changes:  # what an image holds is seen when it is opened
        with pytest.raises(ValueError, match=rf"nlvr2_test1\.arrow: {message}.*; or pass on_bad_example=\"skip\""):
            load_arrow_nlvr2(folder)
    splits = load_arrow_nlvr2(folder, on_bad_example="skip")
    assert re.search(message, splits.left_out[0])
    assert len(splits.test) == 4 - left_out
    assert splits.left_out_count == left_out


def test_a_table_without_rows(folder: Path):
    write_table(folder / "nlvr2_test1.arrow", [])
    with pytest.raises(ValueError, match=r"nlvr2_test1\.arrow has no rows; .*: remove it, and nlvr2_dev\.arrow is used$"):
        load_arrow_nlvr2(folder)
    write_table(folder / "nlvr2_train.arrow", [])
    with pytest.raises(
        ValueError, match=r"nlvr2_train\.arrow has no rows; a split needs at least one: get or make it again"
    ):
        load_arrow_nlvr2(folder)


def test_an_empty_table(folder: Path):
    schema_row = nlvr2_row("test1-0-0", questions=[], answers=["True"])
    write_table(folder / "nlvr2_test1.arrow", [nlvr2_row("test1-3-0", identifier="?"), schema_row | {"questions": ["", ""]}])
    with pytest.raises(
        ValueError,
        match=r"nlvr2_test1\.arrow holds no usable .*remove it, and nlvr2_dev\.arrow is used; the first of 4 left out",
    ):
        load_arrow_nlvr2(folder, on_bad_example="skip")
