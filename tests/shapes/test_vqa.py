"""Shapes-VQA on disk: VQAv2's format, the same for a seed, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from das_gym.data.cache import cache_folder
from das_gym.shapes import vqa as shapes
from das_gym.shapes.scene_language import QUESTION_FAMILIES
from das_gym.shapes.vqa import shapes_root, write_shapes
from das_gym.shapes.writing import NewPictures, written_once
from das_gym.tasks.vqa.vqav2 import load_vqav2

SPLITS = ("train2014", "val2014")
REPOSITORY = Path(__file__).parents[2]

TEXT_OF_VERSION = {1: "d58b8b657ec9fb47"}
"""Digest of the questions and answers of a small set, by shapes.VERSION."""


def in_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run code in a Python of its own, with this checkout's das_gym."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "small", train_scenes=40, val_scenes=30)


@pytest.mark.parametrize(("split", "first", "count"), [("train2014", 1, 40), ("val2014", 500_001, 30)])
def test_files_are_vqav2s(small: Path, split: str, first: int, count: int):
    questions = read(small, f"v2_OpenEnded_mscoco_{split}_questions.json")
    annotations = read(small, f"v2_mscoco_{split}_annotations.json")
    assert set(questions) == {"info", "license", "data_type", "data_subtype", "task_type", "questions"}
    assert set(annotations) == {"info", "license", "data_type", "data_subtype", "annotations"}
    assert set(questions["info"]) == {"description", "url", "version", "year", "contributor", "date_created"}
    assert questions["task_type"] == "Open-Ended"
    assert (questions["data_type"], questions["data_subtype"]) == ("mscoco", split)
    images = sorted(path.name for path in (small / split).iterdir())
    assert images == [f"COCO_{split}_{image_id:012d}.jpg" for image_id in range(first, first + count)]
    for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
        assert set(question) == {"question_id", "image_id", "question"}
        assert question["question_id"] == annotation["question_id"]
        assert question["image_id"] == annotation["image_id"] == question["question_id"] // 1000
        assert annotation["question_type"] in QUESTION_FAMILIES
        assert annotation["answer_type"] in ("yes/no", "number", "other")
        expected = {"answer": annotation["multiple_choice_answer"], "answer_confidence": "yes"}
        assert annotation["answers"] == [{**expected, "answer_id": n} for n in range(1, 11)]


def test_a_scene_gets_at_most_one_question_of_a_family(small: Path):
    for split in SPLITS:
        entries = read(small, f"v2_mscoco_{split}_annotations.json")["annotations"]
        asked = Counter((entry["image_id"], entry["question_type"]) for entry in entries)
        assert set(asked.values()) == {1}
        assert {family for _, family in asked} == set(QUESTION_FAMILIES)
        by_image = Counter(entry["image_id"] for entry in entries)
        assert [e["question_id"] for e in entries] == [i * 1000 + n for i, count in by_image.items() for n in range(count)]


def test_images_are_96_pixel_jpegs(small: Path):
    with Image.open(small / "val2014" / "COCO_val2014_000000500001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))


def test_no_picture_occurs_twice(small: Path):
    pictures = [path.read_bytes() for split in SPLITS for path in (small / split).iterdir()]
    assert len(set(pictures)) == len(pictures) == 70


def test_a_scene_drawn_before_is_passed_over():
    pictures = NewPictures()
    first = [jpeg for _, jpeg in shapes._new_scenes(np.random.default_rng(0), 5, pictures)]
    again = [jpeg for _, jpeg in shapes._new_scenes(np.random.default_rng(0), 5, pictures)]
    assert len(pictures._seen) == 10
    assert not set(first) & set(again)


def test_same_arguments_same_bytes(small: Path, tmp_path: Path):
    again = write_shapes(tmp_path / "again", seed=0, train_scenes=40, val_scenes=30)
    assert contents(again) == contents(small)
    other = write_shapes(str(tmp_path / "other"), seed=1, train_scenes=40, val_scenes=30)
    assert set(contents(other)) == set(contents(small))
    assert not set(contents(other).values()) & set(contents(small).values())


def test_val2014_does_not_depend_on_the_number_of_training_scenes(small: Path, tmp_path: Path):
    fewer = write_shapes(tmp_path / "fewer", train_scenes=2, val_scenes=30)
    assert {n: c for n, c in contents(fewer).items() if "val" in n} == {
        n: c for n, c in contents(small).items() if "val" in n
    }


def test_a_changed_generator_needs_a_new_version(small: Path):
    """Fails when questions or answers change: raise shapes.VERSION, or users read stale data, and put the digest here."""
    text = [
        (question["question"], annotation["multiple_choice_answer"])
        for split in SPLITS
        for question, annotation in zip(
            read(small, f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"],
            read(small, f"v2_mscoco_{split}_annotations.json")["annotations"],
            strict=True,
        )
    ]
    assert TEXT_OF_VERSION[shapes.VERSION] == blake2b(repr(text).encode()).hexdigest()[:16]


def test_guessing_the_majority_answer_stays_under_40_percent(tmp_path: Path):
    splits = load_vqav2(write_shapes(tmp_path / "shapes", train_scenes=5, val_scenes=500))
    for examples in (splits.reward, splits.test):
        answers = Counter(example.answer for example in examples)
        assert answers.most_common(1)[0][1] / len(examples) < 0.40
        of_family = Counter((example.question_type, example.answer) for example in examples)
        best = sum(max(count for (f, _), count in of_family.items() if f == family) for family in QUESTION_FAMILIES)
        assert best / len(examples) < 0.40


def test_off_a_terminal_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_shapes(tmp_path / "shapes", train_scenes=2, val_scenes=2)
    assert tuple(capfd.readouterr()) == ("", "")


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    write_shapes(folder, train_scenes=1, val_scenes=1)
    before = contents(folder)
    with pytest.raises(
        FileExistsError, match=r"shapes exists already; Shapes is written to a new or an empty folder: name another"
    ):
        write_shapes(folder, seed=1, train_scenes=1, val_scenes=1)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_scenes": 0}, r"train_scenes=0 scenes; a split has 1\.\.500000"),
        ({"val_scenes": 500_001}, r"val_scenes=500001 scenes; a split has 1\.\.500000"),
        ({"seed": -1}, r"seed=-1; a seed is 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        write_shapes(tmp_path / "shapes", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_error_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(rng: object, scene: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(QUESTION_FAMILIES, "nearest", refuse)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", train_scenes=2, val_scenes=2)
    assert not list(tmp_path.iterdir())


def test_killed_half_way_leaves_no_folder_and_the_next_run_sweeps_up(tmp_path: Path):
    folder = tmp_path / "shapes"
    child = in_python("import sys; from das_gym.shapes.vqa import write_shapes; write_shapes(sys.argv[1])", str(folder))
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".shapes.*.part/train2014/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not folder.exists()
    assert list(tmp_path.glob(".shapes.*.part"))
    assert written_once(folder, lambda path: write_shapes(path, train_scenes=3, val_scenes=3), "Shapes-VQA") == folder
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["shapes"]
    assert len(list((folder / "train2014").iterdir())) == 3


def test_two_processes_at_once_write_it_once(tmp_path: Path):
    code = (
        "import sys, pathlib; from das_gym.shapes.vqa import write_shapes; from das_gym.shapes.writing import written_once; "
        "write = lambda path: (print('writes', file=sys.stderr), write_shapes(path, 0, 400, 20)); "
        "print(written_once(pathlib.Path(sys.argv[1]), write, 'Shapes-VQA'))"
    )
    folder = tmp_path / "cache" / "shapes"
    children = [in_python(code, str(folder)) for _ in range(2)]
    outcomes = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outcomes
    assert [out.strip() for out, _ in outcomes] == [str(folder)] * 2
    assert sum("writes" in err for _, err in outcomes) == 1
    assert len(list((folder / "train2014").iterdir())) == 400
    assert not list(folder.parent.glob(".shapes.*.part"))


def test_shapes_root_is_in_the_cache_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = tmp_path / f"shapes-vqa-{shapes.VERSION}"
    written.mkdir()
    assert shapes_root(tmp_path) == written
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    assert shapes_root() == written
    assert not list(written.iterdir())


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"Shapes-VQA cannot be written to .*file/below .*set DAS_GYM_CACHE to a writable folder"
    ):
        shapes_root(tmp_path / "file" / "below")
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"DAS_GYM_CACHE=.*file is a file; set it to a folder that das_gym may write to"):
        shapes_root()


def test_the_cache_folder_without_the_variable_is_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DAS_GYM_CACHE", raising=False)
    user = cache_folder()
    assert user.is_absolute()
    assert user.name == "das_gym" or user.parent.name == "das_gym"
    monkeypatch.setenv("DAS_GYM_CACHE", "")
    assert cache_folder() == user
    monkeypatch.setenv("DAS_GYM_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
