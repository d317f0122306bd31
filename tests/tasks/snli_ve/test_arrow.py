"""SNLI-VE's arrow tables, as METER's script writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from das_gym.data.arrow import ArrowImage
from das_gym.tasks.snli_ve.arrow import load_arrow_snli_ve
from das_gym.tasks.snli_ve.task import SNLIVETask
from tests.arrow_tables import jpeg, write_table


def row(shade: int, **changes: Any) -> dict[str, Any]:
    """An image with three hypotheses."""
    sentences = [["A heron.", f" Hypothesis {n} of {shade}."] for n in range(3)]
    return {"image": jpeg(shade), "sentences": sentences, "labels": [2, 0, 1]} | changes


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for part, shades in {"train": (1, 2), "dev": (3,), "test": (4,)}.items():
        write_table(tmp_path / f"snli_{part}.arrow", [row(shade) for shade in shades])
    return tmp_path


def test_examples_are_in_the_order_of_the_rows(tables: Path):
    splits = SNLIVETask.load_splits(tables)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [6, 3, 3]
    assert [example.label for example in splits.test] == [2, 0, 1]
    last = splits.train[-1]
    assert (last.key, last.hypothesis) == ("train-1-2", "Hypothesis 2 of 2.")
    assert last.image == ArrowImage(tables / "snli_train.arrow", 1)


@pytest.mark.parametrize(
    ("changes", "text", "left_out"),
    [
        ({"labels": [2, 0]}, "row 1: lists of different lengths", 3),
        ({"labels": [2, 3, 0]}, "row 1, entry 1: wrong `labels`: got 3", 1),
        ({"sentences": [["a", "b"], ["a"], ["a", "c"]]}, "entry 1: wrong `sentences`", 1),
        ({"sentences": [["a", "b"], ["a", ""], ["a", "c"]]}, "entry 1 is empty", 1),
    ],
)
def test_bad_entry_is_named_or_skipped(tables: Path, changes: dict[str, Any], text: str, left_out: int):
    write_table(tables / "snli_dev.arrow", [row(5), row(6, **changes)])
    with pytest.raises(ValueError, match=text):
        load_arrow_snli_ve(tables)
    splits = load_arrow_snli_ve(tables, "skip")
    assert (len(splits.reward), splits.left_out_count) == (6 - left_out, left_out)
