from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import answering
from benchmarks.answering import Answerer, blind_answers, exact_match, gray
from das_gym.registration import ASSETS
from das_gym.shapes.vqa import write_shapes
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import read_vqav2

ENDS = {"smolvlm_mini": "<end_of_utterance>", "llava_mini": "</s>"}
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


def test_the_best_guess_without_the_picture(shapes_folder: Path):
    train = read_vqav2(shapes_folder, "train2014")
    guessed = exact_match(blind_answers(train, train), train)
    assert 0.3 < guessed["all"] < 1
    assert set(guessed) == {"all", "attribute", "existence", "count", "relation", "nearest"}
    assert exact_match([f"The {example.answer}." for example in train], train)["all"] == 1


@pytest.mark.slow
def test_it_answers_held_out_scenes_and_needs_the_picture(answerer: Answerer, held_out: list[VQAExample]):
    seen = exact_match(answerer.all_answers(held_out), held_out)["all"]
    part = held_out[::3]
    assert seen >= 0.85
    assert exact_match(answerer.all_answers(part, picture=gray), part)["all"] <= seen - 0.25


def test_answers_are_the_same_in_a_batch_padded_on_the_left(answerer: Answerer, held_out: list[VQAExample]):
    some = held_out[:8]
    alone = answerer.all_answers(some, batch_size=1)
    assert len({len(example.question) for example in some}) > 1
    assert answerer.all_answers(some, batch_size=8) == alone


def test_generation_ends_with_what_ends_an_answer(name: str, answerer: Answerer):
    tokenizer, settings = answerer.processor.tokenizer, answerer.model.generation_config
    assert tokenizer.eos_token == ENDS[name]
    assert settings.eos_token_id == answerer.model.config.text_config.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == answerer.model.config.text_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_the_folder_is_a_small_model_of_so_many_layers(name: str, answerer: Answerer):
    kind, layers = KINDS[name]
    assert answerer.model.config.model_type == kind
    assert len(answerer.model.get_decoder().layers) == layers
    assert answerer.model.dtype == torch.float32
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) < 15e6


def test_the_command_prints_and_writes_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shapes_folder: Path
):
    monkeypatch.setattr(answering, "shapes_root", lambda: shapes_folder)
    answering.main(["--questions", "12", "--json", str(tmp_path / "answering.json")])
    written = json.loads((tmp_path / "answering.json").read_text())
    assert written["questions"] == 12
    assert f"{100 * written['answers']['all']:.1f}" in capsys.readouterr().out
