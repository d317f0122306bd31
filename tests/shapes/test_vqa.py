"""Shapes-VQA on disk: VQAv2's format, the same for a seed, complete or not at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from das_gym.shapes import vqa as shapes
from das_gym.shapes.scene_language import QUESTION_FAMILIES
from das_gym.shapes.vqa import shapes_root, write_shapes

SPLITS = ("train2014", "val2014")
REPOSITORY = Path(__file__).parents[2]


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "small", train_scenes=40, val_scenes=30)


@pytest.mark.parametrize(("split", "first", "count"), [("train2014", 1, 40), ("val2014", 500_001, 30)])
def test_write_shapes_has_vqav2s_format(small: Path, split: str, first: int, count: int):
    questions = read(small, f"v2_OpenEnded_mscoco_{split}_questions.json")
    annotations = read(small, f"v2_mscoco_{split}_annotations.json")
    assert set(questions) == {"info", "license", "data_type", "data_subtype", "task_type", "questions"}
    assert set(annotations) == {"info", "license", "data_type", "data_subtype", "annotations"}
    images = sorted(path.name for path in (small / split).iterdir())
    assert images == [f"COCO_{split}_{image_id:012d}.jpg" for image_id in range(first, first + count)]
    with Image.open(small / split / images[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
    for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
        assert set(question) == {"question_id", "image_id", "question"}
        assert question["question_id"] == annotation["question_id"]
        assert question["image_id"] == annotation["image_id"] == question["question_id"] // 1000
        expected = {"answer": annotation["multiple_choice_answer"], "answer_confidence": "yes"}
        assert annotation["answers"] == [{**expected, "answer_id": n} for n in range(1, 11)]
    families = Counter((entry["image_id"], entry["question_type"]) for entry in annotations["annotations"])
    assert set(families.values()) == {1}
    assert {family for _, family in families} == set(QUESTION_FAMILIES)


def test_off_a_terminal_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "shapes").mkdir()
    write_shapes(tmp_path / "shapes", train_scenes=2, val_scenes=2)
    assert tuple(capfd.readouterr()) == ("", "")
    with pytest.raises(FileExistsError, match="shapes exists"):
        write_shapes(tmp_path / "shapes", seed=1, train_scenes=1, val_scenes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_shapes_root_is_in_the_cache_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = tmp_path / f"shapes-vqa-{shapes.VERSION}"
    written.mkdir()
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    assert shapes_root(tmp_path) == shapes_root() == written
    assert not list(written.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Shapes-VQA cannot be written to .*file/below .*DAS_GYM_CACHE"):
        shapes_root(tmp_path / "file" / "below")
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="DAS_GYM_CACHE is not a folder"):
        shapes_root()
