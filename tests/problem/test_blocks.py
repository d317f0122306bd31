"""Distances of blocks, against the statistics of single layers and against hidden vectors taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from das_gym.problem.blocks import measure_blocks
from das_gym.problem.loading import Problem
from das_gym.problem.statistic_inputs import measure_activity


@pytest.fixture(scope="module")
def blocks(tiny_problem: Problem) -> dict:
    return measure_blocks(tiny_problem.evaluator, tiny_problem.splits.reward[:6])


def test_blocks_of_one_layer_agree_with_statistics(tiny_problem: Problem, blocks: dict):
    activity = measure_activity(tiny_problem.evaluator, tiny_problem.splits.reward[:6])
    np.testing.assert_allclose([row[0] for row in blocks["cosine"]], activity.block_influence_tokens, atol=1e-8)
    assert blocks["stages"] == [[i, i + 6] for i in range(6)]
    assert blocks["streams"] == ["text"] * 6 + ["image"] * 6
    assert [sum(each is not None for each in row) for row in blocks["angular"]] == [6, 5, 4, 3, 2, 1] * 2


@torch.inference_mode()
def test_longer_blocks_agree_with_hidden_states(tiny_problem: Problem, blocks: dict):
    vlp, evaluator = tiny_problem.vlp, tiny_problem.evaluator
    examples = tiny_problem.splits.reward[:6]
    state = vlp.embed(evaluator.encoder(evaluator.task.pairs(examples)))
    states = [state]
    for stage in range(6):
        states.append(vlp.advance(states[-1], stage, np.zeros(12, dtype=bool)))
    for stream, offset in (("text", 0), ("image", 6)):
        hidden = [each.hidden[stream].double() for each in states]
        for start, length in ((0, 6), (2, 3), (1, 2), (5, 1)):
            before, after = hidden[start][:, 0], hidden[start + length][:, 0]  # both streams pool their first token
            cos = torch.cosine_similarity(before, after, dim=-1)
            wanted = float((torch.arccos(cos) / np.pi).mean())
            assert blocks["angular"][offset + start][length - 1] == pytest.approx(wanted, abs=1e-6)
    image = [each.hidden["image"].double() for each in states]  # images have no padding
    apart = 1 - torch.cosine_similarity(image[1], image[4], dim=-1).mean(dim=1)
    assert blocks["cosine"][7][2] == pytest.approx(float(apart.mean()), abs=1e-6)
