"""Examples with their answers, as reports show them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from das_gym.adapt.examples import EXAMPLES, THUMBNAIL_SIDE, read_examples, write_examples
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.files import read_json, write_json
from das_gym.tasks.nlvr2 import NLVR2Example, NLVR2Task

TASK = NLVR2Task(processor=None)  # only text and images are required


@pytest.fixture
def examples(tmp_path: Path) -> list[NLVR2Example]:
    images = []
    for color in ("red", "blue"):
        images.append(ImageFile(tmp_path / f"{color}.png"))
        Image.new("RGB", (2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE), color).save(images[-1].path)
    return [NLVR2Example(f"{i}", f"sentence {i}", (images[0], images[1]), i % 2 == 0) for i in range(20)]


def test_examples_round_trip(examples: list[NLVR2Example], tmp_path: Path):
    said = {"full model with adapters": ["True"] * 20, "subnet": ["True"] * 17 + ["False"] * 3}
    write_examples(tmp_path, TASK, examples, said)
    told = read_examples(tmp_path)
    assert told.models == ["full model with adapters", "subnet"]
    assert told.about == "12 of 20 questions; the models differ on 3, which come first"
    assert [(question.text, question.reference, *answers) for question, answers in told.rows][2:4] == [
        ("sentence 19", "False", "True", "False"),
        ("sentence 0", "True", "True", "True"),
    ]
    left, right = told.rows[0][0].images
    with Image.open(io.BytesIO(base64.b64decode(left.partition(",")[2]))) as picture:
        assert picture.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)
        assert picture.getpixel((5, 5))[0] > 200
    assert left != right


def test_damaged_file_is_named(examples: list[NLVR2Example], tmp_path: Path):
    write_examples(tmp_path, TASK, examples[:2], {"full model with adapters": ["True"] * 2, "subnet": ["True"] * 2})
    kept = read_json(tmp_path / EXAMPLES)
    write_json(tmp_path / EXAMPLES, kept | {"rows": [["q", ["a", "b"]]]})
    with pytest.raises(ValueError, match=r"examples.json is damaged .*remove it for a report without examples"):
        read_examples(tmp_path)
