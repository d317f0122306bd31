"""Arrow tables: found, opened, told apart from other formats, and named when damaged."""

import pickle
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from das_gym.data import tables
from das_gym.data.arrow_format import require_table
from das_gym.data.entries import BadExamples
from das_gym.data.rows import CellImage
from das_gym.data.tables import open_table
from das_gym.problem.loading import task_class
from das_gym.tasks import nlvr2, retrieval
from das_gym.tasks.vqa import files as vqa
from tests.arrow_tables import caption_row, jpeg, vqa_row, write_captions, write_nlvr2, write_table, write_vqa

TABLES = {module.TABLES.task: module.TABLES for module in (vqa, nlvr2, retrieval)}
WRITERS = {"vqa": write_vqa, "nlvr2": write_nlvr2, "retrieval": write_captions}


@pytest.mark.parametrize("task", WRITERS)
def test_tables_are_found_and_distinguished(tmp_path, task):
    assert not TABLES[task].is_in(tmp_path / "nowhere")
    WRITERS[task](tmp_path)
    assert [name for name, tables in TABLES.items() if tables.is_in(tmp_path)] == [task]
    cls = task_class(task)
    pairs = cls(None, ("yes", "no")).pairs(cls.load_splits(tmp_path).reward[:1])
    assert pairs[-1].image.open().size == (24, 16)


def test_table_selects_one_of_two_data_sets(tmp_path):
    write_captions(tmp_path)
    write_captions(tmp_path, "coco_caption_karpathy")
    with pytest.raises(ValueError, match=r"several data sets: got f30k\w+ and coco\w+.*`data_root`"):
        TABLES["retrieval"].find(tmp_path)
    table = tmp_path / "coco_caption_karpathy_test.arrow"
    assert TABLES["retrieval"].find(table)["val"] == tmp_path / "coco_caption_karpathy_val.arrow"
    with pytest.raises(FileNotFoundError, match=r"no table of vqa"):
        TABLES["vqa"].find(table)


def test_missing_table_is_named(tmp_path):
    write_vqa(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no table of test: got vqav2_train\.arrow, vqav2_val"):
        require_table(TABLES["vqa"].find(tmp_path), "test")
    with pytest.raises(FileNotFoundError, match=r"nlvr2_<split>\.arrow"):
        TABLES["nlvr2"].find(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"image": jpeg(3), "caption": ["a"]},
        {"image": jpeg(3), "caption": ["a"], "image_id": 3},
        {"image_id": "a", "caption": 3},
    ],
    ids=["missing", "kind", "no list"],
)
def test_wrong_column_is_named(tmp_path, row):
    path = write_table(tmp_path / "a.arrow", [row])
    with pytest.raises(ValueError, match=r"a\.arrow.*`(image_id|caption)`"):
        list(TABLES["retrieval"].entries(path, BadExamples()))
    with pytest.raises(ValueError, match="image_0"):
        CellImage(path, 0, "image_0").open()


def test_entries_are_those_of_the_lists(tmp_path):
    rows = [vqa_row(7), vqa_row(8, questions=["one"]), vqa_row(9)]
    path, bad = write_table(tmp_path / "a.arrow", rows), BadExamples("skip")
    items = list(vqa.TABLES.entries(path, bad))
    assert [(item["row"], item["number"], item["question_id"]) for _, item in items] == [
        *((0, n, 7000 + n) for n in range(2)),
        *((2, n, 9000 + n) for n in range(2)),
    ]
    assert items[3][0] == f"{path}: row 2, entry 1"
    assert (len(bad.lines), "image" in items[0][1]) == (1, False)


def test_image_opens_its_table_in_another_process(tmp_path):
    path = write_table(tmp_path / "a.arrow", [caption_row(f"c{n}", shade=50 * n) for n in range(4)])
    picture = pickle.loads(pickle.dumps(CellImage(path, 3))).open()
    assert (picture.mode, picture.size) == ("RGB", (24, 16))
    np.testing.assert_allclose(np.asarray(picture), 150, atol=2)
    with pytest.raises(ValueError, match=r"row 4 .* changed"):
        CellImage(path, 4).open()


@pytest.mark.parametrize("content", [None, b"", jpeg(9)[:300], b"<html>"])
def test_damaged_image_names_its_row(tmp_path, content):
    path = write_table(tmp_path / "a.arrow", [caption_row("c"), caption_row("d", image=content)])
    with pytest.raises(ValueError, match=r"image in row 1 of .*a\.arrow cannot be read"):
        CellImage(path, 1).open()


def test_error_of_a_damaged_parquet_file_has_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["one", "two"]}), path)
    whole = bytearray(path.read_bytes())
    whole[4] ^= 0xFF  # the header of the first page
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.parquet cannot be read[^\n]*$"):
        open_table(path)


def test_parquet_file_that_unpacks_to_too_much_is_named(tmp_path, monkeypatch):
    pq.write_table(pa.table({"question": ["0" * 1000] * 1000}), tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "MIN_UNPACKED", 10_000)
    monkeypatch.setattr(tables, "MAX_RATIO", 1)
    with pytest.raises(ValueError, match=r"a\.parquet unpacks to more than 10000 bytes"):
        tables.open_table(tmp_path / "a.parquet")
    assert not list((tmp_path / "cache" / "parquet").glob("*.arrow"))


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    path = write_table(tmp_path / "a.arrow", [caption_row("c")])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"das_gym\[datasets\]"):
        open_table(path)
