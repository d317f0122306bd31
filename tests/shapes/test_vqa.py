"""Shapes-VQA: its questions, and the data set."""

import re

import numpy as np
import pytest

from das_gym.shapes import BUNDLED, bundled_root
from das_gym.shapes.scenes import Scene, SceneObject, sample_scene
from das_gym.shapes.vqa import NEAREST_RATIO, QUESTION_FAMILIES, Question, write_shapes
from das_gym.tasks.vqa.files import load_vqa
from tests.shapes.judging import objects_named, related, the_one

N_SCENES = 400
ANSWER_TYPES = {"attribute": "other", "existence": "yes/no", "count": "number", "relation": "yes/no", "nearest": "other"}


def scenes(seed: int = 0, count: int = N_SCENES) -> tuple[np.random.Generator, list[Scene]]:
    rng = np.random.default_rng(seed)
    return rng, [sample_scene(rng) for _ in range(count)]


def nearest_to(scene: Scene, name: str) -> SceneObject:
    anchor = the_one([o for o in scene.objects if o.name == name])
    others = sorted((np.hypot(o.x - anchor.x, o.y - anchor.y), i) for i, o in enumerate(scene.objects) if o is not anchor)
    assert others[1][0] >= NEAREST_RATIO * others[0][0], "ambiguous"
    return scene.objects[others[0][1]]


def answer_of(question: str, scene: Scene) -> str:
    if m := re.fullmatch(r"what color is the (\w+)\?", question):
        return the_one([o for o in scene.objects if o.shape == m[1]]).color
    if m := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return the_one([o for o in scene.objects if o.color == m[1]]).shape
    if m := re.fullmatch(r"is there a (\w+ \w+)\?", question):
        return "yes" if any(o.name == m[1] for o in scene.objects) else "no"
    if m := re.fullmatch(r"how many (.+) are there\?", question):
        return str(len(objects_named(m[1], scene)))
    if m := re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", question):
        return "yes" if related(m[1], m[2], m[3], scene) else "no"
    if m := re.fullmatch(r"what color is the object nearest to the (\w+ \w+)\?", question):
        return nearest_to(scene, m[1]).color
    m = re.fullmatch(r"what shape is nearest to the (\w+ \w+)\?", question)
    assert m, question
    return nearest_to(scene, m[1]).shape


def questions_of(family: str, seed: int = 0) -> list[tuple[Scene, Question]]:
    rng, drawn = scenes(seed)
    asked = [(scene, QUESTION_FAMILIES[family](rng, scene)) for scene in drawn]
    return [(scene, question) for scene, question in asked if question is not None]


@pytest.mark.parametrize("family", QUESTION_FAMILIES)
def test_answers_are_right(family):
    for scene, question in questions_of(family):
        assert answer_of(question.text, scene) == question.answer, question
        assert question.family == family
        assert question.answer_type == ANSWER_TYPES[family]


def test_written_data_are_read_back(tmp_path):
    splits = load_vqa(write_shapes(tmp_path / "small", train_scenes=40, val_scenes=30), "skip")  # decodes every image
    assert splits.left_out == ()
    assert {example.image_id for example in splits.train} == set(range(1, 41))
    assert {example.image_id for part in (splits.reward, splits.test) for example in part} == set(range(500_001, 500_031))
    assert {example.question_type for example in splits.train} == set(QUESTION_FAMILIES)
    assert all(example.answers == (example.answer,) * 10 for example in splits.train)


def test_off_a_terminal_nothing_is_printed(tmp_path, capfd):
    (tmp_path / "shapes").mkdir()
    write_shapes(tmp_path / "shapes", train_scenes=2, val_scenes=2)
    assert tuple(capfd.readouterr()) == ("", "")
    with pytest.raises(FileExistsError, match="shapes exists"):
        write_shapes(tmp_path / "shapes", seed=1, train_scenes=1, val_scenes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_bundled_root_is_in_the_cache_and_not_written_again(tmp_path, monkeypatch):
    written = tmp_path / BUNDLED["vqa"].folder
    written.mkdir()
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    assert bundled_root("vqa", tmp_path) == bundled_root("vqa") == written
    assert not list(written.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Shapes-VQA cannot be written to .*file/below .*DAS_GYM_CACHE"):
        bundled_root("vqa", tmp_path / "file" / "below")
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="DAS_GYM_CACHE is not a folder"):
        bundled_root("vqa")
