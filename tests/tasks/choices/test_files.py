from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from das_gym.tasks.choices.files import load_choices
from tests.arrow_tables import jpeg
from tests.tasks.answering.making import draw, write, write_lines

OPTIONS = ["red", "green", "blue"]


def rows(count: int = 12, **changes: Any) -> list[dict[str, Any]]:
    return [{"question": f"what colour is {n}?", "options": OPTIONS, "answer": n % 3, **changes} for n in range(count)]


def of(splits: Any) -> list[Any]:
    return sorted([*splits.train, *splits.reward, *splits.test], key=lambda e: int(e.question.split()[-1].strip("?")))


@pytest.mark.parametrize(
    "row",
    [
        {"options": OPTIONS, "answer": 1},
        {"options": OPTIONS, "answer": "green"},
        {"options": OPTIONS, "answer": "B"},
        {"endings": OPTIONS, "label": "1"},
        {"choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"},
    ],
)
def test_answers_are_positions_labels_letters_or_texts(tmp_path: Path, row: dict[str, Any]):
    write_lines(tmp_path / "a.jsonl", [{"question": f"what colour is {n}?", **row} for n in range(5)])
    examples = of(load_choices(tmp_path))
    assert [e.answer for e in examples] == ["green"] * 5
    assert examples[0].options == tuple(OPTIONS)


def test_scienceqa_as_parquet_has_hints_images_and_subjects(tmp_path: Path):
    image = {"bytes": jpeg(10), "path": None}
    for split, start in (("train", 0), ("validation", 6), ("test", 9)):
        table = [
            {
                "image": None if n % 2 else {**image, "bytes": jpeg(20 * n)},
                "question": f"what colour is {n}",
                "choices": OPTIONS,
            }
            | {"answer": n % 3, "hint": "It is bright." if n % 2 else "", "subject": "art"}
            for n in range(start, start + 3)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load_choices(tmp_path)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [3, 3, 3]
    assert [len(e.images) for e in splits.train] == [1, 0, 1]
    assert splits.train[1].question == "It is bright.\nwhat colour is 1"
    assert {e.kind for e in splits.train} == {"art"}
    assert splits.train[0].images[0].open().size == (24, 16)


def test_questions_about_one_image_stay_in_one_split(tmp_path: Path):
    write(tmp_path / "all.json", [{**row, "image": f"{n // 4}.png"} for n, row in enumerate(rows(40))])
    draw(*(tmp_path / "images" / f"{n}.png" for n in range(10)))
    splits = load_choices(tmp_path)
    keys = [{e.images[0].key for e in part} for part in (splits.train, splits.reward, splits.test)]
    assert [len(part) for part in keys] == [8, 1, 1]
    assert not keys[0] & keys[1] | keys[1] & keys[2] | keys[0] & keys[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, r"line 1: the answer is not among the options: got '3'"),
        ({"answer": None}, r"line 1 has no answer or answerKey or label"),
        ({"question": " "}, r"line 1: the question is empty"),
        ({"options": "red"}, r"line 1: the options are not a list"),
        ({"options": ["red", "red"], "answer": 0}, r"line 1: wrong `options`"),
        ({"options": ["red", 3], "answer": 0}, r"line 1: an option is empty"),
        ({"image": "none.png"}, r"none\.png does not exist"),
    ],
)
def test_damaged_rows_are_named_and_can_be_skipped(tmp_path: Path, changes: dict[str, Any], message: str):
    write_lines(tmp_path / "a.jsonl", [{**rows(1)[0], **changes}, *rows(12)])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_choices(tmp_path)
    assert len(of(load_choices(tmp_path, on_bad_example="skip"))) == 12


def test_rows_that_are_no_objects_and_other_files_are_errors(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", [*rows(3), 7])
    with pytest.raises(ValueError, match=r"line 4 has no question"):
        load_choices(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="known format"):
        load_choices(tmp_path)
