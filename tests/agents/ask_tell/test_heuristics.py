"""Pruning heuristics, worked out by hand."""

import math

import numpy as np
import pytest
from das_gym.agents import Budget, MaskSpace
from das_gym.agents.ask_tell.heuristics import Angular, BlockInfluence, Blocks, Interlace, Uniform
from landscapes import SPACES

from das_gym.problem.budget import MaskCost


def skipped(agent):
    return np.flatnonzero(agent.best()).tolist()


def one_stream(angular=None, cosine=None, n=6):
    """Return blocks of a model with one stream; by default all are far apart."""
    far = [[0.9] * (n - i) for i in range(n)]
    stages, streams = [[i] for i in range(n)], ["joint"] * n
    return {"stages": stages, "streams": streams, "angular": angular or far, "cosine": cosine or [row[:3] for row in far]}


def test_uniform_spreads_layers_evenly():
    for n_layers, skip_num, layers in ((12, 4, [1, 4, 7, 10]), (12, 1, [6]), (12, 0, []), (3, 3, [0, 1, 2]), (5, 2, [1, 3])):
        assert skipped(Uniform(MaskSpace(Budget(n_layers, skip_num)))) == layers
    # 0.15 wanted: of layers 0-5 each saves 0.02, of 6-11 0.07; {2, 6, 10} are the first spread to save as much
    agent = Uniform(SPACES["cost"])
    assert skipped(agent) == [2, 6, 10]
    assert (agent.ask(3) == agent.best()).all()
    agent.tell(agent.ask(3), np.zeros(1))
    assert agent.ask(3).shape == (0, 12)


def test_block_influence_ranks_by_a_statistic():
    space = MaskSpace(Budget(4, 2))
    statistics = {"block_influence_tokens": np.array([3.0, 1.0, 2.0, 4.0]), "other": np.array([1.0, 1.0, 5.0, 0.0])}
    assert skipped(BlockInfluence(space, statistics=statistics)) == [1, 2]
    assert skipped(BlockInfluence(space, statistics=statistics, statistic="other")) == [0, 3]
    with pytest.raises(ValueError, match="statistic"):
        BlockInfluence(space, statistics=statistics, statistic="othr")


def test_angular_takes_the_nearest_block_of_k():
    rows = [[0.1, 0.5, 0.6], [0.2, 0.3, 0.7], [0.3, 0.4, 0.2], [0.4, 0.2, 0.9], [0.5, 0.9], [0.6]]
    for count, wanted in ((1, [0]), (2, [3, 4]), (3, [2, 3, 4]), (0, [])):
        assert skipped(Angular(MaskSpace(Budget(6, count)), blocks=one_stream(rows))) == wanted


def test_angular_by_cost_takes_blocks_as_long_as_needed():
    # 0.2 is saved by layers 0-1 (0.1 each), by 1-3 (0.1, 0.05, 0.05), by 2-5, and by layer 5 alone
    macs = MaskCost(100, 100, np.array([10, 10, 5, 5, 5, 20]))
    rows = [[0.5] * 6, [0.5, 0.5, 0.1, 0.5, 0.5], [0.5, 0.5, 0.5, 0.3], [0.05, 0.5, 0.4], [0.05, 0.4], [0.2]]
    space = MaskSpace(Budget(6, saved=0.2, cost=macs))
    assert skipped(Angular(space, blocks=one_stream(rows))) == [1, 2, 3]


def test_angular_takes_whole_stages_of_parallel_layers():
    # text 0-2, image 3-5; stages (0, 3), (1, 4), (2, 5); the second stage has the least mean, 0.25 against 0.3
    blocks = {
        "stages": [[0, 3], [1, 4], [2, 5]],
        "streams": ["text"] * 3 + ["image"] * 3,
        "angular": [[0.1, 0.5, 0.5], [0.3, 0.2], [0.3], [0.5, 0.5, 0.5], [0.2, 0.2], [0.3]],
        "cosine": [[0.5, 0.5, 0.5], [0.5, 0.5], [0.5], [0.5, 0.5, 0.5], [0.5, 0.5], [0.5]],
    }
    assert skipped(Angular(MaskSpace(Budget(6, 2)), blocks=blocks)) == [1, 4]
    assert skipped(Angular(MaskSpace(Budget(6, 4)), blocks=blocks)) == [1, 2, 4, 5]
    assert skipped(Angular(MaskSpace(Budget(6, 1)), blocks=blocks)) == [4]  # only the nearer layer of its last stage


def test_angular_stays_within_one_tower():
    blocks = one_stream([[0.1, 0.1, None], [0.1, None], [0.5, 0.5, 0.5], [0.5, 0.5], [0.5]], [[0.5]] * 5, n=5)
    blocks["streams"] = ["vision", "vision", "joint", "joint", "joint"]
    assert skipped(Angular(MaskSpace(Budget(5, 3)), blocks=blocks)) == [2, 3, 4]


def test_interlace_takes_one_of_the_first_two_of_disjoint_triplets():
    # triplets from 0..3 of 7 layers: the nearest is 1-3, whose layer 2 is nearer than 1; 0, 2 and 3 share with it, so pairs
    # follow: of 4-5 layer 5 is nearer; then layers alone, the last one among them
    cosine = [[0.4, 0.4, 0.2], [0.3, 0.3, 0.1], [0.2, 0.3, 0.3], [0.3, 0.3, 0.3], [0.5, 0.1], [0.4, 0.2], [0.1]]
    blocks = one_stream([[0.5]] * 7, cosine, n=7)
    for count, wanted in ((1, [2]), (2, [2, 5]), (3, [2, 5, 6]), (4, [1, 2, 5, 6])):
        assert skipped(Interlace(MaskSpace(Budget(7, count)), blocks=blocks)) == wanted


def test_blocks_are_estimated_from_single_layers():
    influence = np.array([0.0, 1 - math.cos(0.2), 1 - math.cos(0.1), 2.0])
    blocks = Blocks.estimate({"block_influence_pooled": influence, "stream": np.array([0, 0, 1, 1])}, 4)
    np.testing.assert_allclose(blocks.angular[0], [0.0, 0.2 / np.pi], atol=1e-9)
    np.testing.assert_allclose(blocks.angular[2], [0.1 / np.pi, 1.0])
    parallel = Blocks.estimate({"stream": np.array([0, 0, 1, 1]), "depth": np.array([0, 1, 0, 1])}, 4)
    assert parallel.stages == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="blocks"):  # of another model
        Angular(MaskSpace(Budget(5, 2)), blocks=one_stream())
