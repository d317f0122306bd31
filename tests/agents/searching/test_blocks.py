"""Blocks for the agents that use them: next to tables, and in a search."""

import shutil

import numpy as np
import pytest
from das_gym.agents import Budget, MaskSpace
from das_gym.agents.searching.loop import make_search_agent
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import SearchConfig
from synthetic import ENV_ID

from benchmarks.assets import main
from benchmarks.search.problems import find_tables
from das_gym.envs.tabular_env import blocks_file, load_table, stored_blocks
from das_gym.registration import ASSETS

FURTHER = ("smolvlm_mini/answering_sublayers_table.npz", "llava_mini/answering_table.npz")
TABLES = [*find_tables().values(), *(ASSETS / name for name in FURTHER)]


@pytest.mark.parametrize("path", TABLES, ids=[f"{path.parent.name} {path.stem}" for path in TABLES])
def test_next_to_finds_blocks_of_every_bundled_table(path):
    table = load_table(path)
    blocks = stored_blocks(path, table)
    influence = table.statistics[:, table.meta.statistics.index("block_influence_tokens")]
    np.testing.assert_allclose([row[0] for row in blocks["cosine"]], influence, atol=2e-5)
    distances = np.array([each for row in blocks["angular"] for each in row if each is not None])
    assert ((distances > 0) & (distances < 1)).all()
    assert sorted(layer for stage in blocks["stages"] for layer in stage) == list(range(table.n_layers))


def test_make_search_agent_fills_in_measured_blocks():
    space = MaskSpace(Budget(12, 4))
    tabular, foreign = open_scorer("DAS-METER-VQA-Tabular-v0", {}), open_scorer(ENV_ID, {})
    agent = make_search_agent(SearchConfig(agent="angular"), space, {}, tabular.blocks)
    assert agent.blocks.angular == stored_blocks(TABLES[0], load_table(TABLES[0]))["angular"]
    assert make_search_agent(SearchConfig(agent="bandit"), space, {}, foreign.blocks).learning_rate == 20.0
    assert foreign.blocks() is None


def test_blocks_command_measures_next_to_a_table(small_table, small_kwargs, tmp_path, capsys):
    path = tmp_path / "vqa_table.npz"
    small_table.save(path)
    assert stored_blocks(path, small_table) is None
    shutil.copy(blocks_file(TABLES[0]), blocks_file(path))
    assert stored_blocks(path, small_table) is None  # of other data
    given = [f"{name}={value}" for name, value in small_kwargs.items()]
    main(["blocks", str(path), "--problem", *given])
    assert capsys.readouterr().out == f"{blocks_file(path)}\n"
    assert len(stored_blocks(path, small_table)["cosine"]) == small_table.n_layers
    blocks_file(path).write_text("{}")
    with pytest.raises(ValueError, match=r"_blocks\.json is damaged"):
        stored_blocks(path, small_table)
