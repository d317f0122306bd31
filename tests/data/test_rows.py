"""Rows in memory: of `datasets`, or dicts, read without decoding their images; the same as those of files."""

import io
from typing import Any

import datasets
import pytest
from PIL import Image

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageFile, content_digest
from das_gym.data.rows import CellImage, Table, table_of_file, table_of_rows
from das_gym.tasks.answering.tables import divide_tables
from das_gym.tasks.choices import read_choices
from das_gym.tasks.text import read_documents
from tests.arrow_tables import jpeg

ROWS = [{"image": {"bytes": jpeg(n), "path": None}, "question": f"Which {n}?", "answer": "grey"} for n in range(9)]
FEATURES = datasets.Features(
    image=datasets.Image(), question=datasets.Value("string"), answer=datasets.ClassLabel(names=["black", "grey"])
)
DATASET = datasets.Dataset.from_list(ROWS, features=FEATURES)


def images(table: Table) -> list[CellImage]:
    return [
        image for where, (n, row) in table.entries(["image"]) for _, image in table.images(n, "image", row["image"], where)
    ]


@pytest.mark.parametrize("rows", [ROWS, DATASET, DATASET.select(range(9))], ids=["dicts", "dataset", "selected"])
def test_rows_in_memory_are_those_of_a_file(rows, tmp_path):
    DATASET.to_parquet(tmp_path / "a.parquet")
    of_file = table_of_file(tmp_path / "a.parquet", tmp_path)
    splits, others = (
        divide_tables({"train": [table]}, "the rows", BadExamples()) for table in (table_of_rows(rows, "train"), of_file)
    )
    for part, other in ((splits.train, others.train), (splits.test, others.test)):
        assert [(e.question, e.answer, e.images[0].key) for e in part] == [
            (e.question, e.answer, e.images[0].key) for e in other
        ]
    example = splits.train[0]
    assert example.key == "train/0"
    assert example.images[0].open().tobytes() == others.train[0].images[0].open().tobytes()


def test_reading_decodes_no_image_and_follows_no_url(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    found = images(table_of_rows(DATASET.shuffle(seed=0), "train"))
    assert {image.digest for image in found} == {content_digest(row["image"]["bytes"]) for row in ROWS}
    assert {image.open().size for image in found} == {(24, 16)}
    remote = datasets.Dataset.from_dict({"image": ["https://x.org/a.png"]}).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match="train: row 0: wrong name of an image"):
        images(table_of_rows(remote, "train"))


def test_images_of_every_form_are_the_same_pixels(tmp_path):
    content = jpeg(7)
    (tmp_path / "a.jpg").write_bytes(content)
    forms = [Image.open(io.BytesIO(content)), content, str(tmp_path / "a.jpg"), tmp_path / "a.jpg"]
    forms += [{"bytes": content, "path": "x"}, {"bytes": None, "path": str(tmp_path / "a.jpg")}, [content]]
    found = images(table_of_rows([{"image": form} for form in forms], "train"))
    assert len({image.open().tobytes() for image in found}) == 1
    assert found[2] == ImageFile(tmp_path / "a.jpg")
    assert found[1].key == found[4].key
    several = [{"image": [content, jpeg(9)]}, {"image": None}]
    assert [image.index for image in images(table_of_rows(several, "train"))] == [0, 1]


def test_pil_images_that_change_afterwards_are_named():
    picture = Image.new("RGB", (4, 4), "red")
    (image,) = images(table_of_rows([{"image": picture}], "train"))
    assert image.open() is not picture
    picture.putpixel((0, 0), (0, 0, 0))
    with pytest.raises(ValueError, match="image in row 0 of train has changed"):
        image.open()


@pytest.mark.parametrize("cell", [3, {"pixels": b""}, 1.5, [None], "a\0b", ""])
def test_cells_that_are_no_image_are_named(cell):
    with pytest.raises(ValueError, match="train: row 0"):
        images(table_of_rows([{"image": cell}], "train"))


@pytest.mark.parametrize("rows", [{"train": DATASET}, "train", 3, [1, 2], DATASET.to_iterable_dataset()])
def test_what_has_no_rows_is_named(rows):
    with pytest.raises(TypeError, match="`train` is not data"):
        table_of_rows(rows, "train")


def test_documents_and_choices_of_rows():
    texts = table_of_rows([{"text": "one"}, {"text": " "}, {"text": 3}, {}], "train")
    bad = BadExamples("skip")
    assert [(d.key, d.text) for d in read_documents(texts, "text", bad)] == [("train#0", "one")]
    assert [line.partition(": wrong")[0] for line in bad.lines] == ["train: row 2", "train: row 3"]
    with pytest.raises(ValueError, match="lacks the column `content`: got text"):
        read_documents(texts, "content", bad)
    asked = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"}
    (one,) = read_choices(table_of_rows(datasets.Dataset.from_list([asked]), "test"), BadExamples())
    assert (one.key, one.rounds, one.options) == ("test/0", (("Which?", "blue"),), ("red", "blue"))
