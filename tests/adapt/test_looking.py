"""A supernet that does not look at the pictures is told of, when it is trained and when it is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from das_gym.adapt.looking import Look, look

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits, load_supernet


def test_what_is_hardly_better_than_blind_is_named():
    good = Look({"accuracy": 0.9, "question/colour": 1.0}, {"accuracy": 0.3, "question/colour": 1.0})
    assert good.doubts == ()
    assert good.told() == (
        "accuracy of the full model on the reward split: 90.0 %, 30.0 % with every picture replaced by the mean of all"
    )
    poor = Look({"accuracy": 0.7, "question/colour": 0.10}, {"accuracy": 0.4, "question/colour": 0.12})
    assert poor.doubts == ("question/colour",)
    assert "\nhardly better than blind: question/colour 10 % (12 % blind). Scores of masks mean little there" in poor.told()


@pytest.fixture
def problem(small_kwargs: dict[str, str]) -> ProblemConfig:
    return ProblemConfig(**small_kwargs)


def test_a_supernet_of_random_numbers_is_doubted_when_it_is_loaded(problem: ProblemConfig, tmp_path: Path):
    splits = load_splits(problem)
    model = load_supernet(problem, splits)
    seen = look(model, splits)
    assert seen is not None
    assert "accuracy" in seen.doubts
    path = tmp_path / "told.safetensors"
    for info, words in (({"seeing": dict(seen.seeing), "blind": dict(seen.blind)}, "accuracy"), ({}, None)):
        model.adaptation(**info).save(path)
        config = ProblemConfig(**{**vars(problem), "supernet": str(path)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_supernet(config, splits)
        told = [str(w.message) for w in caught if "hardly better" in str(w.message)]
        assert len(told) == (words is not None)
        assert words is None or f"{path} is hardly better with the pictures than without them: {words}" in told[0]
