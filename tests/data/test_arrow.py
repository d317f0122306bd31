"""Arrow tables: found, opened, told apart from other formats, clear when damaged."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from das_gym.data.arrow import ArrowFolder, ArrowImage, ArrowRows, is_arrow, open_rows, open_table, read_rows
from das_gym.problem.loading import task_class
from das_gym.tasks.nlvr2 import arrow as nlvr2
from das_gym.tasks.retrieval import arrow as retrieval
from das_gym.tasks.vqa import arrow as vqa
from tests.arrow_tables import caption_row, jpeg, vqa_row, write_captions, write_nlvr2, write_table, write_vqa

FILES = {module.FILES.task: module.FILES for module in (vqa, nlvr2, retrieval)}
COLUMNS = {"image": "bytes", "caption": "list of text", "image_id": "text"}


def test_formats_are_told_apart_by_looking(tmp_path: Path):
    write_vqa(tmp_path)
    assert is_arrow(tmp_path, FILES["vqa"])
    assert not is_arrow(tmp_path, FILES["nlvr2"])
    assert not is_arrow(tmp_path, FILES["retrieval"])
    write_nlvr2(tmp_path)
    write_captions(tmp_path, "coco_caption_karpathy")
    assert is_arrow(str(tmp_path), FILES["nlvr2"])
    assert is_arrow(tmp_path, FILES["retrieval"])
    assert is_arrow(tmp_path / "vqav2_val.arrow", FILES["vqa"])
    assert not is_arrow(tmp_path / "nowhere", FILES["vqa"])


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_tasks_read_tables_where_they_find_them(tmp_path: Path, task: str):
    {"vqa": write_vqa, "nlvr2": write_nlvr2, "retrieval": write_captions}[task](tmp_path)
    cls = task_class(task)
    splits = cls.load_splits(tmp_path)
    pairs = cls(None, ("yes", "no")).pairs(splits.reward[:1])
    assert isinstance(pairs[-1].image, ArrowImage)
    assert pairs[-1].image.open().size == (24, 16)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("vqa", "v2_OpenEnded_mscoco_train2014_questions.json"),
        ("nlvr2", "data/train.json"),
        ("retrieval", "dataset_flickr30k.json"),
    ],
)
def test_both_formats_in_a_folder_are_refused(tmp_path: Path, task: str, name: str):
    {"vqa": write_vqa, "nlvr2": write_nlvr2, "retrieval": write_captions}[task](tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    message = rf"holds the data of {task} twice, as arrow tables \(\w+\.arrow, \.\.\.\) and in its own format \({name}, "
    with pytest.raises(ValueError, match=message):
        is_arrow(tmp_path, FILES[task])


def test_two_data_sets_in_a_folder_are_told_apart_by_a_table(tmp_path: Path):
    write_captions(tmp_path)
    write_captions(tmp_path, "coco_caption_karpathy")
    with pytest.raises(
        ValueError, match=r"holds the tables of f30k\w+ and coco\w+; name one table as the data root, such as .*/coco_"
    ):
        ArrowFolder.find(tmp_path, FILES["retrieval"])
    tables = ArrowFolder.find(tmp_path / "coco_caption_karpathy_test.arrow", FILES["retrieval"])
    assert tables.require("val") == tmp_path / "coco_caption_karpathy_val.arrow"
    with pytest.raises(ValueError, match=r"data_root='.*coco.*' is no table of vqa: its name must be vqav2_<split>\.arrow"):
        ArrowFolder.find(tmp_path / "coco_caption_karpathy_test.arrow", FILES["vqa"])


def test_a_missing_table_is_named_beside_what_is_there(tmp_path: Path):
    write_vqa(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no table .*vqav2_test\.arrow; of vqav2 there is: vqav2_train\.arrow, vqav2_val\.arrow"
    ):
        ArrowFolder.find(tmp_path, FILES["vqa"]).require("test")
    with pytest.raises(FileNotFoundError, match=r"holds no table nlvr2_<split>\.arrow"):
        ArrowFolder.find(tmp_path, FILES["nlvr2"])
    with pytest.raises(FileNotFoundError, match=r"there is no table .*gone\.arrow"):
        open_table(tmp_path / "gone.arrow", COLUMNS)


@pytest.mark.parametrize("kept", [0, 5, 500, -1, -200])
def test_a_truncated_table_is_named(tmp_path: Path, kept: int):
    path = write_table(tmp_path / "vqav2_val.arrow", [vqa_row(n) for n in range(3)])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"vqav2_val\.arrow cannot be read as an arrow file \(.*it is truncated, damaged"):
        open_table(path, COLUMNS)


def test_damaged_columns_raise_and_do_not_crash(tmp_path: Path):
    path = write_table(tmp_path / "f30k_caption_karpathy_val.arrow", [caption_row(f"c{n}") for n in range(40)])
    whole = path.read_bytes()
    refused = []
    for start in range(600, len(whole) - 600, 997):
        path.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
        try:
            rows = list(read_rows(path, COLUMNS))
            for row in range(len(rows)):
                ArrowImage(path, row).open()
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 5
    assert all(str(path) in message for message in refused)


def test_a_column_that_is_missing_or_of_another_kind(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [{"image": jpeg(3), "caption": ["a"]}])
    with pytest.raises(ValueError, match=r"a\.arrow has no column 'image_id'; it needs image, caption, image_id, and has"):
        list(read_rows(path, COLUMNS))
    path = write_table(tmp_path / "b.arrow", [{"image": jpeg(3), "caption": "one", "image_id": "x"}])
    with pytest.raises(ValueError, match=r"b\.arrow: the column 'caption' holds text, and must hold list of text"):
        list(read_rows(path, COLUMNS))


def test_rows_come_without_their_images(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [caption_row(f"c{n}") for n in range(3)])
    rows = list(read_rows(path, COLUMNS))
    assert [row["image_id"] for row in rows] == ["c0.jpg", "c1.jpg", "c2.jpg"]
    assert set(rows[0]) == {"caption", "image_id"}


def test_an_image_opens_its_table_also_in_another_process(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [caption_row(f"c{n}", shade=50 * n) for n in range(4)])
    image = pickle.loads(pickle.dumps(ArrowImage(path, 3)))
    picture = image.open()
    assert (picture.mode, picture.size) == ("RGB", (24, 16))
    np.testing.assert_allclose(np.asarray(picture), 150, atol=2)
    assert len({ArrowImage(path, row).key for row in range(4)}) == 4


def test_a_rewritten_table_is_opened_anew(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [caption_row("c", shade=10)])
    image, before = ArrowImage(path, 0), ArrowImage(path, 0).stamp()
    image.open()
    path.unlink()
    write_table(path, [caption_row("c", shade=200), caption_row("d")])
    assert image.stamp() != before
    np.testing.assert_allclose(np.asarray(image.open()), 200, atol=2)


@pytest.mark.parametrize("content", [None, b"", jpeg(9)[:300], b"<html>"])
def test_an_image_that_is_none_names_its_row(tmp_path: Path, content: bytes | None):
    path = write_table(tmp_path / "a.arrow", [caption_row("c"), caption_row("d", image=content)])
    with pytest.raises(ValueError, match=r"image in row 1 of .*a\.arrow cannot be read"):
        ArrowImage(path, 1).open()


def test_a_row_or_column_that_is_gone(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [caption_row("c")])
    with pytest.raises(ValueError, match=r"a\.arrow has no row 1; it has changed: load it anew"):
        ArrowImage(path, 1).open()
    with pytest.raises(ValueError, match=r"a\.arrow has no column 'image_0'; it needs image_0, and has image, "):
        ArrowImage(path, 0, "image_0").open()


def test_a_column_without_anything_is_no_column_of_images(tmp_path: Path):
    path = write_table(tmp_path / "a.arrow", [caption_row("c", image=None)])
    with pytest.raises(ValueError, match=r"a\.arrow: the column 'image' holds null, and must hold bytes"):
        ArrowImage(path, 0).open()


def write_compressed(path: Path, how: str, zeros: int) -> Path:
    """Two rows whose images are zeros, and a dictionary that nobody reads, of as many."""
    zero = bytes(zeros)
    columns = {"image": [zero, zero], "image_id": [1, 2], "other": pa.array([zero, zero]).dictionary_encode()}
    table = pa.table(columns)
    options = pa.ipc.IpcWriteOptions(compression=how)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1)
    return path


@pytest.mark.parametrize("how", ["lz4", "zstd"])
def test_columns_that_nobody_asks_for_are_not_read(tmp_path: Path, how: str):
    path = write_compressed(tmp_path / "a.arrow", how, 10**6)
    before = pa.total_allocated_bytes()
    table = open_rows(path, {"image": "bytes", "image_id": "integer"})
    assert table.column_names == ["image_id"]
    assert pa.total_allocated_bytes() - before < 2 * 10**6  # the dictionary, which all columns share


def test_tables_one_below_the_other():
    images = ArrowRows((Path("a.arrow"), Path("b.arrow")), (0, 3, 5))
    assert [(images(place).path.name, images(place).row) for place in range(5)] == [
        *[("a.arrow", row) for row in range(3)],
        *[("b.arrow", row) for row in range(2)],
    ]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_table(tmp_path / "a.arrow", [caption_row("c")])
    usual = builtins.__import__

    def without_pyarrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(ImportError, match=r"arrow tables need pyarrow: install it with pip install 'das_gym\[arrow\]'"):
        open_table(path, COLUMNS)
