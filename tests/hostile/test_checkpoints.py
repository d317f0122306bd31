"""Checkpoints of searches with values replaced: a search goes on from one, or says what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from das_gym.agents.ask_tell.base import AGENTS, agent_class
from das_gym.agents.searching.loop import SearchConfig, _Loop, make_env

from tests.hostile.test_records import replaced

TRIED = 12


def loop_of(agent: str) -> _Loop:
    config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent=agent, evaluations=18)
    return _Loop(config, make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, agent_class(agent).free_budget))


def try_to_go_on(agent: str, state: Any, path: Path) -> None:
    loop = loop_of(agent)
    try:
        loop.restore(state, path)
    except ValueError as error:
        told = str(error)
    else:
        with contextlib.suppress(gymnasium.error.ResetNeeded):  # where a state says that an episode is over
            while loop.take_turn():
                pass
            loop.result()
        return
    assert str(path) in told


@pytest.mark.parametrize("agent", AGENTS)
def test_a_search_goes_on_or_names_the_checkpoint(agent: str, tmp_path: Path):
    loop = loop_of(agent)
    for _ in range(3):
        loop.take_turn()
    state = json.loads(json.dumps(loop.state()))
    variants = [{**state, part: other} for part in ("agent", "env", "turns") for other in replaced(state[part])]
    for changed in random.Random(agent).sample(variants, TRIED):
        try_to_go_on(agent, changed, tmp_path / "checkpoint.json")
