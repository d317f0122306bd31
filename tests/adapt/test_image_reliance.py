from __future__ import annotations

import warnings
from pathlib import Path

from das_gym.adapt.image_reliance import ImageRelianceCheck, check_image_reliance

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits, load_supernet


def test_summary_names_the_metrics_that_do_not_depend_on_the_image():
    good = ImageRelianceCheck({"accuracy": 0.9, "question/colour": 1.0}, {"accuracy": 0.3, "question/colour": 1.0})
    assert good.image_agnostic_metrics == ()
    assert "90.0 %, 30.0 %" in good.summary()
    poor = ImageRelianceCheck({"accuracy": 0.7, "question/colour": 0.10}, {"accuracy": 0.4, "question/colour": 0.12})
    assert poor.image_agnostic_metrics == ("question/colour",)
    assert "\nnot clearly better than without images: question/colour 10 % (12 % blind)" in poor.summary()


def test_loading_a_supernet_warns_if_its_answers_do_not_depend_on_the_image(small_kwargs: dict[str, str], tmp_path: Path):
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    model = load_supernet(problem, splits)
    check = check_image_reliance(model, splits)
    assert check is not None
    assert "accuracy" in check.image_agnostic_metrics
    path = tmp_path / "supernet.safetensors"
    for info, expected in (({"seeing": dict(check.seeing), "blind": dict(check.blind)}, 1), ({}, 0)):
        model.adaptation(**info).save(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_supernet(ProblemConfig(**{**vars(problem), "supernet": str(path)}), splits)
        assert sum("accuracy" in str(warning.message) for warning in caught) == expected
