"""Which problem scores the masks of a search that runs first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from das_gym.adapt.choosing import scored_problem
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.scorer import open_scorer

from das_gym.problem.config import ProblemConfig
from das_gym.registration import DEFAULT_ENV

LOADED: Any = SimpleNamespace(backbone=SimpleNamespace(config=ProblemConfig(device="cpu")))


def search(env_id: str = DEFAULT_ENV, **env_kwargs: Any) -> SearchConfig:
    return SearchConfig(env_id, skip_num=4, env_kwargs=env_kwargs, problem=ProblemConfig(device="cpu"))


def test_the_loaded_problem_scores_a_search_of_the_same_model_and_data():
    assert scored_problem(search(reward_examples=8), LOADED) is LOADED


@pytest.mark.parametrize("other", [search("DAS-METER-VQA-Tabular-v0"), search(tree_gib=1.0), search(workers="ray")])
def test_other_settings_of_the_search_are_not_ignored(other: SearchConfig):
    assert scored_problem(other, LOADED) is None


def test_an_unknown_setting_of_a_search_on_a_loaded_problem():
    with pytest.raises(TypeError, match="reward_exampels"):
        open_scorer(DEFAULT_ENV, {"reward_exampels": 8}, problem=LOADED)
