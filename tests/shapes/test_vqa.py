"""Shapes-VQA on disk: VQAv2's format, the same for a seed, complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.shapes import vqa as shapes
from das_gym.shapes.scene_language import QUESTION_FAMILIES
from das_gym.shapes.vqa import shapes_root, write_shapes
from das_gym.tasks.vqa.readers import load_vqa


def test_written_data_are_read_back(tmp_path: Path):
    splits = load_vqa(write_shapes(tmp_path / "small", train_scenes=40, val_scenes=30), "skip")  # decodes every image
    assert splits.left_out == ()
    assert {example.image_id for example in splits.train} == set(range(1, 41))
    assert {example.image_id for part in (splits.reward, splits.test) for example in part} == set(range(500_001, 500_031))
    assert {example.question_type for example in splits.train} == set(QUESTION_FAMILIES)
    assert all(example.answers == (example.answer,) * 10 for example in splits.train)


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
