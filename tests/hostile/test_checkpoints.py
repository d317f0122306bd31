"""Checkpoints of searches with replaced values: a search resumes, or reports what is wrong with the file."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from das_gym.agents.ask_tell.base import AGENTS, agent_class
from das_gym.agents.searching.checkpoint import CHECKPOINT
from das_gym.agents.searching.loop import SearchConfig, SearchLoop, make_env

from tests.hostile.test_records import replaced

TRIED = 12


def loop_of(agent: str) -> SearchLoop:
    config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent=agent, evaluations=18)
    env = make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, agent_class(agent).free_budget)
    return SearchLoop(config, env)


def try_to_resume(agent: str, record: Any, folder: Path) -> None:
    loop = loop_of(agent)
    (folder / CHECKPOINT).write_text(json.dumps(record))
    try:
        loop.restore(folder)
    except ValueError as error:
        message = str(error)
    else:
        with contextlib.suppress(gymnasium.error.ResetNeeded):  # if the state says that an episode is over
            while loop.take_turn():
                pass
            loop.result()
        return
    assert str(folder / CHECKPOINT) in message


@pytest.mark.parametrize("agent", AGENTS)
def test_search_resumes_or_names_the_checkpoint(agent: str, tmp_path: Path):
    loop = loop_of(agent)
    for _ in range(3):
        loop.take_turn()
    loop.checkpoint().save(tmp_path, loop.config)
    record = json.loads((tmp_path / CHECKPOINT).read_text())
    variants = [{**record, part: other} for part in ("agent", "env", "turns") for other in replaced(record[part])]
    for changed in random.Random(agent).sample(variants, TRIED):
        try_to_resume(agent, changed, tmp_path)
