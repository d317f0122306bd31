from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bundled_scores
from benchmarks.bundled_scores import Answerer, exact_match, gray, prior_answers
from das_gym.registration import ASSETS
from das_gym.shapes.vqa import write_shapes
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import read_vqav2

KINDS = {"smolvlm_mini": ("smolvlm", 12), "llava_mini": ("llava", 24)}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[VQAExample]:
    """The questions on the first 60 scenes of the bundled val2014: they do not depend on how many others there are."""
    folder = write_shapes(tmp_path_factory.mktemp("shapes") / "data", train_scenes=1, val_scenes=60)
    return list(read_vqav2(folder, "val2014"))


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def answerer(name: str) -> Answerer:
    return Answerer.load(ASSETS / name)


def test_prior_answers_without_the_image(shapes_folder: Path):
    train = read_vqav2(shapes_folder, "train2014")
    guessed = exact_match(prior_answers(train, train), train)
    assert 0.3 < guessed["all"] < 1
    assert set(guessed) == {"all", "attribute", "existence", "count", "relation", "nearest"}
    assert exact_match([f"The {example.answer}." for example in train], train)["all"] == 1


@pytest.mark.slow
def test_answers_of_held_out_scenes_need_the_image(answerer: Answerer, held_out: list[VQAExample]):
    seen = exact_match(answerer.answers(held_out), held_out)["all"]
    part = held_out[::3]
    assert seen >= 0.85
    assert exact_match(answerer.answers(part, image=gray), part)["all"] <= seen - 0.25


def test_answers_do_not_depend_on_left_padding(answerer: Answerer, held_out: list[VQAExample]):
    some = held_out[:8]
    alone = answerer.answers(some, batch_size=1)
    assert len({len(example.question) for example in some}) > 1
    assert answerer.answers(some, batch_size=8) == alone


def test_main_prints_scores_of_an_answering_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shapes_folder: Path
):
    monkeypatch.setattr(bundled_scores, "shapes_root", lambda: shapes_folder)
    bundled_scores.main(["smolvlm_mini", "--questions", "12"])
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("answers", "empty images", "prior"))
