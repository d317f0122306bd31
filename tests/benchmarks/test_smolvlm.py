from __future__ import annotations

from pathlib import Path

from benchmarks.smolvlm import blind_answers, exact_match
from das_gym.tasks.vqa.vqav2 import read_vqav2


def test_the_best_guess_without_the_picture(shapes_folder: Path):
    train = read_vqav2(shapes_folder, "train2014")
    guessed = exact_match(blind_answers(train, train), train)
    assert 0.3 < guessed["all"] < 1
    assert set(guessed) == {"all", "attribute", "existence", "count", "relation", "nearest"}
    assert exact_match([f"The {example.answer}." for example in train], train)["all"] == 1
