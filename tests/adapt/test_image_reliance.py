from __future__ import annotations

import warnings
from pathlib import Path

from das_gym.adapt.supernet import describe_reliance, image_reliance

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import image_agnostic_metrics, load_splits, load_supernet


def test_describe_reliance_names_the_metrics_that_do_not_depend_on_the_image():
    good = describe_reliance({"accuracy": 0.9, "question/colour": 1.0}, {"accuracy": 0.3, "question/colour": 1.0})
    assert good.endswith("90.0 %, 30.0 % with every image replaced by the mean image")
    poor = describe_reliance({"accuracy": 0.7, "question/colour": 0.10}, {"accuracy": 0.4, "question/colour": 0.12})
    assert "\nnot clearly better than without images: question/colour 10 % (12 % blind)" in poor


def test_loading_a_supernet_warns_if_its_answers_do_not_depend_on_the_image(small_kwargs: dict[str, str], tmp_path: Path):
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    model = load_supernet(problem, splits)
    scores = image_reliance(model, splits)
    assert "accuracy" in image_agnostic_metrics(**scores)
    path = tmp_path / "supernet.safetensors"
    for info, expected in ((scores, 1), ({}, 0)):
        model.adaptation(**info).save(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_supernet(ProblemConfig(**{**vars(problem), "supernet": str(path)}), splits)
        assert sum("accuracy" in str(warning.message) for warning in caught) == expected
