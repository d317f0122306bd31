"""Blocks for the agents that choose by them: beside tables, and in a search."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from das_gym.agents import SearchConfig
from das_gym.agents.block_measuring import beside, blocks_of, file_beside, takes_blocks, with_blocks
from synthetic import ENV_ID

from benchmarks.blocks import main
from benchmarks.leaderboard.board import find_tables
from das_gym.envs.tabular_env import load_table
from das_gym.registration import ASSETS

FURTHER = ("smolvlm_mini/answering_sublayers_table.npz", "llava_mini/answering_table.npz")
TABLES = [*find_tables(None).values(), *(ASSETS / name for name in FURTHER)]


@pytest.mark.parametrize("path", TABLES, ids=[f"{path.parent.name} {path.stem}" for path in TABLES])
def test_every_bundled_table_has_its_blocks(path):
    blocks, table = beside(path), load_table(path)
    influence = table.statistics[:, table.meta.statistics.index("block_influence_tokens")]
    np.testing.assert_allclose([row[0] for row in blocks["cosine"]], influence, atol=2e-5)
    distances = np.array([each for row in blocks["angular"] for each in row if each is not None])
    assert ((distances > 0) & (distances < 1)).all()
    assert sorted(layer for stage in blocks["stages"] for layer in stage) == list(range(table.n_layers))


def test_blocks_of_something_else_are_left_alone(tmp_path, made_up_table):
    shutil.copy(made_up_table, tmp_path / "vqa_table.npz")
    assert beside(tmp_path / "vqa_table.npz") is None
    shutil.copy(file_beside(TABLES[0]), tmp_path / "vqa_blocks.json")
    assert beside(tmp_path / "vqa_table.npz") is None


def test_a_search_is_told_what_its_agent_needs():
    config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent="angular")
    assert with_blocks(config).agent_kwargs == {"blocks": beside(TABLES[0])}
    for same in (SearchConfig(agent="bayes"), SearchConfig(agent="angular", agent_kwargs={"blocks": {}})):
        assert with_blocks(same) is same
    assert blocks_of(ENV_ID, {}) is None  # an environment of one's own
    assert [takes_blocks(name) for name in ("angular", "interlace", "sleb", "ppo")] == [True, True, False, False]


def test_a_table_of_ones_own_gets_its_blocks(small_table, small_kwargs, tmp_path, capsys):
    path = tmp_path / "vqa_table.npz"
    small_table.save(path)
    given = [f"{name}={value}" for name, value in small_kwargs.items()]
    main(["with", f"table={path}", *given])
    assert capsys.readouterr().out == f"blocks of layers: {file_beside(path)}\n"
    assert len(beside(path)["cosine"]) == small_table.n_layers
    file_beside(path).write_text("{}")
    with pytest.raises(ValueError, match=r"_blocks\.json is damaged"):
        beside(path)
