"""The rules and searches of other papers, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from das_gym.agents import AGENTS, Angular, BlockInfluence, Budget, EvoPress, Greedy, Interlace, MaskSpace, make_agent
from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.ask_tell.blocks import Blocks

from das_gym.problem.mask_cost import MaskCost

NO = None


def skipped(agent):
    return np.flatnonzero(agent.best()).tolist()


def one_stream(angular=None, cosine=None, n=6):
    """Blocks of a model of one stream; what is not given is far apart."""
    far = [[0.9] * (n - i) for i in range(n)]
    return {
        "stages": [[i] for i in range(n)],
        "streams": ["joint"] * n,
        "angular": angular or far,
        "cosine": cosine or [row[:3] for row in far],
    }


def test_angular_takes_the_nearest_block_of_k():
    rows = [[0.1, 0.5, 0.6], [0.2, 0.3, 0.7], [0.3, 0.4, 0.2], [0.4, 0.2, 0.9], [0.5, 0.9], [0.6]]
    for count, wanted in ((1, [0]), (2, [3, 4]), (3, [2, 3, 4]), (0, [])):
        assert skipped(Angular(MaskSpace(Budget(6, count)), blocks=one_stream(rows))) == wanted


def test_angular_by_cost_takes_blocks_as_long_as_they_must_be():
    # 0.2 is saved by layers 0-1 (0.1 each), by 1-3 (0.1, 0.05, 0.05), by 2-5, and by layer 5 alone
    macs = MaskCost(100, 100, np.array([10, 10, 5, 5, 5, 20]))
    rows = [[0.5] * 6, [0.5, 0.5, 0.1, 0.5, 0.5], [0.5, 0.5, 0.5, 0.3], [0.05, 0.5, 0.4], [0.05, 0.4], [0.2]]
    space = MaskSpace(Budget(6, saved=0.2, cost=macs))
    assert skipped(Angular(space, blocks=one_stream(rows))) == [1, 2, 3]


def test_angular_of_layers_side_by_side_takes_whole_stages():
    # text 0-2, image 3-5; stages (0, 3), (1, 4), (2, 5); the second stage has the least mean, 0.25 against 0.3
    blocks = {
        "stages": [[0, 3], [1, 4], [2, 5]],
        "streams": ["text"] * 3 + ["image"] * 3,
        "angular": [[0.1, 0.5, 0.5], [0.3, 0.2], [0.3], [0.5, 0.5, 0.5], [0.2, 0.2], [0.3]],
        "cosine": [[0.5, 0.5, 0.5], [0.5, 0.5], [0.5], [0.5, 0.5, 0.5], [0.5, 0.5], [0.5]],
    }
    assert skipped(Angular(MaskSpace(Budget(6, 2)), blocks=blocks)) == [1, 4]
    assert skipped(Angular(MaskSpace(Budget(6, 4)), blocks=blocks)) == [1, 2, 4, 5]
    assert skipped(Angular(MaskSpace(Budget(6, 1)), blocks=blocks)) == [4]  # of its last stage the nearer layer alone


def test_angular_does_not_run_from_one_tower_into_another():
    blocks = one_stream([[0.1, 0.1, NO], [0.1, NO], [0.5, 0.5, 0.5], [0.5, 0.5], [0.5]], [[0.5]] * 5, n=5)
    blocks["streams"] = ["vision", "vision", "joint", "joint", "joint"]
    assert skipped(Angular(MaskSpace(Budget(5, 3)), blocks=blocks)) == [2, 3, 4]


def test_interlace_takes_one_of_the_first_two_of_disjoint_triplets():
    # triplets from 0..3 of 7 layers: the nearest is 1-3, whose layer 2 is nearer than 1; 0, 2 and 3 share with it, so pairs
    # follow: of 4-5 layer 5 is nearer; then layers alone, the last one among them
    cosine = [[0.4, 0.4, 0.2], [0.3, 0.3, 0.1], [0.2, 0.3, 0.3], [0.3, 0.3, 0.3], [0.5, 0.1], [0.4, 0.2], [0.1]]
    blocks = one_stream([[0.5]] * 7, cosine, n=7)
    for count, wanted in ((1, [2]), (2, [2, 5]), (3, [2, 5, 6]), (4, [1, 2, 5, 6])):
        assert skipped(Interlace(MaskSpace(Budget(7, count)), blocks=blocks)) == wanted


def test_blocks_that_nobody_measured_are_estimated_from_single_layers():
    influence = np.array([0.0, 1 - math.cos(0.2), 1 - math.cos(0.1), 2.0])
    blocks = Blocks.of(None, {"block_influence_pooled": influence, "stream": np.array([0, 0, 1, 1])}, 4)
    assert blocks.chain(1) == [2, 3]
    np.testing.assert_allclose(blocks.angular[0], [0.0, 0.2 / np.pi], atol=1e-9)
    np.testing.assert_allclose(blocks.angular[2], [0.1 / np.pi, 1.0])
    paired = Blocks.of(None, {"stream": np.array([0, 0, 1, 1]), "depth": np.array([0, 1, 0, 1])}, 4)
    assert paired.stages == [[0, 2], [1, 3]]


def test_blocks_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"blocks is not what .* gives for 5 layers"):
        Angular(MaskSpace(Budget(5, 2)), blocks=one_stream())


def test_evopress_keeps_how_many_of_each_size_are_skipped():
    sizes = np.array([0.02, 0.04] * 4)
    agent = EvoPress(MaskSpace(Budget(8, 4)), 0, {"parameters_share": sizes}, offspring=4, initial=6, stages=(1.0,))
    first = agent.ask(6)
    agent.tell(first, np.arange(6.0))
    small = agent.parent[::2].sum()
    for _ in range(5):
        mutants = agent.ask(4)
        assert (mutants[:, ::2].sum(axis=1) == small).all()
        assert (mutants.sum(axis=1) == 4).all()
        agent.tell(mutants, np.zeros(len(mutants)))


def test_evopress_scores_many_on_few_examples_and_two_on_all():
    agent = EvoPress(MaskSpace(Budget(12, 4)), 0)
    spent = []
    for _ in range(12):
        share, masks = agent.examples_share, agent.ask(100)
        spent.append((share, len(masks)))
        agent.tell(masks, np.random.default_rng(len(spent)).random(len(masks)))
    assert spent[:4] == [(1 / 16, 64), (1.0, 2), (1 / 16, 32), (1.0, 2)]


def test_sleb_is_greedy_by_its_papers_name():
    assert agent_class("sleb") is Greedy is agent_class("greedy")
    assert "SLEB" in Greedy.__doc__
    assert isinstance(make_agent("sleb", MaskSpace(Budget(4, 2))), Greedy)
    assert {"block_influence", "angular", "sleb", "evopress", "interlace", "random"} <= set(AGENTS)


def test_block_influence_takes_the_layers_that_change_least():
    cosine = [[0.4, 0.5, 0.5], [0.1, 0.5, 0.5], [0.3, 0.5, 0.5], [0.2, 0.5], [0.6]]
    agent = BlockInfluence(MaskSpace(Budget(5, 2)), blocks=one_stream([[0.5]] * 5, cosine, n=5))
    assert skipped(agent) == [1, 3]
    estimated = BlockInfluence(MaskSpace(Budget(3, 1)), statistics={"block_influence_tokens": np.array([0.3, 1.2, 0.1])})
    assert skipped(estimated) == [2]
