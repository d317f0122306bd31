"""Parquet files and folders of `save_to_disk` with an image, a question and an answer in each row."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image
from pyarrow import parquet

from das_gym.data.splits import Splits
from das_gym.tasks.answering.examples import SHORT_ANSWER, AnswerExample
from das_gym.tasks.answering.reading import load_answers
from das_gym.tasks.answering.task import AnsweringTask, score_answer
from tests.arrow_tables import jpeg
from tests.tasks.answering.making import assert_disjoint, draw, llava_folder, parts_of

Row = dict[str, Any]


def row(number: int, answer: Any = "grey", **more: Any) -> Row:
    return {"image": {"bytes": jpeg(number), "path": None}, "question": f"Which {number}?", "answer": answer, **more}


def write_parquet(path: Path, rows: list[Row], row_group_size: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def keys_of(splits: Splits[AnswerExample]) -> dict[str, list[str]]:
    return {name: [example.key for example in part] for name, part in parts_of(splits).items()}


def read_one(tmp_path: Path, changed: Row) -> AnswerExample:
    """The first row of a table of which each row has the given values."""
    write_parquet(tmp_path / "data" / "train.parquet", [{**row(number), **changed} for number in range(9)])
    splits = load_answers(tmp_path / "data")
    return next(e for part in (splits.train, splits.reward, splits.test) for e in part if e.key == "train.parquet/0")


def test_load_answers_parquet_shards_by_split(tmp_path):
    shards = {"train-00000-of-00002": range(6), "train-00001-of-00002": range(6, 12), "test-00000-of-00001": range(12, 15)}
    for name, numbers in shards.items():
        write_parquet(tmp_path / "data" / f"{name}.parquet", [row(number) for number in numbers], row_group_size=2)
    splits = load_answers(tmp_path / "data")
    assert {name: len(part) for name, part in parts_of(splits).items()} == {"train": 11, "reward": 1, "test": 3}
    assert_disjoint(splits)
    example = splits.test[1]
    assert (example.key, example.question) == ("test-00000-of-00001.parquet/1", f"Which 13?\n{SHORT_ANSWER}")
    assert example.answer == "grey"
    assert example.images[0].open().getpixel((3, 3)) == (13, 13, 13)
    assert keys_of(load_answers(tmp_path / "data" / "train-00001-of-00002.parquet"))["test"] == [
        f"test-00000-of-00001.parquet/{number}" for number in range(3)
    ]


def test_load_answers_saved_to_disk_equals_parquet(tmp_path):
    rows = [row(number) for number in range(30)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    write_parquet(tmp_path / "parquet" / "all.parquet", rows)
    saved, other = (load_answers(tmp_path / name) for name in ("saved", "parquet"))
    assert [len(part) for part in parts_of(saved).values()] == [24, 3, 3]
    for mine, theirs in zip(parts_of(saved).values(), parts_of(other).values(), strict=True):
        assert sorted(e.question for e in mine) == sorted(e.question for e in theirs)


def test_load_answers_saved_dataset_dict(tmp_path):
    folder = tmp_path / "saved"
    numbers = {"train": range(9), "test": range(9, 12)}
    parts = {part: Dataset.from_list([row(number) for number in of_part]) for part, of_part in numbers.items()}
    DatasetDict(parts).cast_column("image", Image()).save_to_disk(folder)
    splits = load_answers(folder)
    assert [len(part) for part in parts_of(splits).values()] == [8, 1, 3]
    assert splits.test[0].key == "test/data-00000-of-00001.arrow/0"
    assert splits.test[0].images[0].open().size == (24, 16)


def test_load_answers_keeps_rows_with_equal_images_in_one_split(tmp_path):
    rows = [row(number % 10, question=f"Which {number}?") for number in range(40)]
    write_parquet(tmp_path / "one.parquet", rows)
    splits = load_answers(tmp_path)
    assert_disjoint(splits)
    assert [len(part) for part in parts_of(splits).values()] == [32, 4, 4]


@pytest.mark.parametrize(
    ("answer", "reference", "answers"),
    [
        ("two ", "two", ()),
        (2, "2", ()),
        (["two"], "two", ()),
        (["2", "two", "two"], "two", ("2", "two", "two")),
        ([{"answer": "a cat", "answer_id": 1}, {"answer": "cat", "answer_id": 2}], "a cat", ("a cat", "cat")),
    ],
)
def test_load_answers_forms_of_answers(tmp_path, answer, reference, answers):
    example = read_one(tmp_path, {"answer": answer, "options": [reference, "x"], "answer_type": "CLOSED"})
    assert (example.answer, example.answers) == (reference, answers)
    assert (example.options, example.kind) == ((reference, "x"), "CLOSED")


def test_load_answers_images_named_by_paths(tmp_path):
    paths = [tmp_path / "data" / "images" / f"{number}.png" for number in range(9)]
    draw(*paths)
    rows = [row(number, image={"bytes": None, "path": f"{number}.png"}) for number in range(9)]
    write_parquet(tmp_path / "data" / "train.parquet", rows)
    splits = load_answers(tmp_path / "data")
    assert {e.images[0].key for part in parts_of(splits).values() for e in part} == set(map(str, paths))


def test_load_answers_several_images_and_marks(tmp_path):
    question = "<image><image>Same?\nSay yes or no."
    rows = [row(n, image=[row(n)["image"], row(n + 100)["image"]], question=question) for n in range(9)]
    write_parquet(tmp_path / "all.parquet", rows)
    example = load_answers(tmp_path).train[0]
    assert (example.question, len(example.images)) == (question, 2)
    write_parquet(tmp_path / "all.parquet", [{**each, "question": "<image> Same?"} for each in rows])
    with pytest.raises(ValueError, match="marks <image>"):
        load_answers(tmp_path)


def test_load_answers_without_images_warns(tmp_path):
    rows = [row(number) for number in range(12)]
    write_parquet(tmp_path / "all.parquet", [*rows[:11], {**rows[11], "image": None}])
    with pytest.warns(UserWarning, match="1 of 12 rows have no image, such as .*row 11"):
        load_answers(tmp_path)
    several = [{**each, "image": [each["image"], None]} for each in rows]
    write_parquet(tmp_path / "all.parquet", several)
    with pytest.raises(ValueError, match="row 0: `image` has an empty place"):
        load_answers(tmp_path)


def test_load_answers_names_of_classes(tmp_path):
    rows = [{"image": row(n)["image"], "question": "What is it?", "label": n % 2} for n in range(12)]
    data = Dataset.from_list(rows).cast_column("label", ClassLabel(names=["cat", "dog"]))
    data.to_parquet(tmp_path / "all.parquet")
    example = load_answers(tmp_path).train[0]
    assert example.options == ("cat", "dog")
    assert example.answer in example.options


def test_load_answers_columns_setting(tmp_path):
    rows = [{"photo": jpeg(number), "query": "What?", "text": f"thing {number}", "label": 1} for number in range(9)]
    write_parquet(tmp_path / "all.parquet", rows)
    with pytest.raises(ValueError, match=r"photo, query, text, label.*columns. to IMAGE,QUESTION,ANSWER"):
        load_answers(tmp_path)
    splits = AnsweringTask.load_splits(tmp_path, columns="photo, query,text")
    assert {e.answer for part in parts_of(splits).values() for e in part} == {f"thing {number}" for number in range(9)}
    assert len(AnsweringTask.load_part(tmp_path, "test", columns="photo,query,text")) == 1
    for wrong in ("photo,query", "photo,query,answer"):
        with pytest.raises(ValueError, match="columns"):
            load_answers(tmp_path, columns=wrong)
    with pytest.raises(ValueError, match="columns"):
        load_answers(llava_folder(tmp_path / "llava", train=9), columns="photo,query,text")


@pytest.mark.parametrize("bad", [{"answer": None}, {"question": " "}, {"image": {"bytes": b"no image", "path": None}}])
def test_load_answers_bad_rows(tmp_path, bad):
    rows = [row(number) for number in range(12)]
    write_parquet(tmp_path / "all.parquet", [*rows, {**row(13), **bad}])
    splits = load_answers(tmp_path, "skip")
    assert len(splits.left_out) == 1
    assert "row 12" in splits.left_out[0]
    if "image" not in bad:
        with pytest.raises(ValueError, match="row 12"):
            load_answers(tmp_path)


def test_load_answers_folders_named_like_splits(tmp_path):
    for split, numbers in {"train": range(9), "validation": range(9, 12), "test": range(12, 15)}.items():
        write_parquet(tmp_path / split / "0000.parquet", [row(number) for number in numbers])
    assert [len(part) for part in parts_of(load_answers(tmp_path)).values()] == [9, 3, 3]


def test_load_answers_splits_of_unknown_names(tmp_path):
    for name in ("train", "easy"):
        write_parquet(tmp_path / f"{name}.parquet", [row(number) for number in range(9)])
    with pytest.raises(ValueError, match="'easy'"):
        load_answers(tmp_path)


def test_load_answers_damaged_parquet(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [row(number) for number in range(9)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="parquet file"):
        load_answers(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"_data_files": []}', '{"_data_files": [{"name": "a"}]}', "["])
def test_load_answers_damaged_state(tmp_path, content):
    folder = tmp_path / "saved"
    Dataset.from_list([row(number) for number in range(9)]).save_to_disk(folder)
    (folder / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json"):
        load_answers(folder)


def test_load_answers_parquet_that_changes_is_copied_again(tmp_path):
    path = write_parquet(tmp_path / "data" / "all.parquet", [row(number) for number in range(9)])
    image = load_answers(tmp_path / "data").train[0].images[0]
    write_parquet(path, [row(number + 100) for number in range(9)])
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="changed"):
        image.open()
    assert load_answers(tmp_path / "data").train[0].images[0].open().getpixel((3, 3))[0] >= 100
    assert len(list((tmp_path / "cache" / "parquet").glob("*.arrow"))) == 1


def test_score_answer_accepts_any_of_a_few_answers():
    example = AnswerExample("1", (), "Who?", "NYC", answers=("NYC", "New York"))
    assert [score_answer(example, text) for text in ("new york", "nyc.", "Paris")] == [1.0, 1.0, 0.0]
