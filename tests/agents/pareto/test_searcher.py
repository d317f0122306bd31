"""The search of a whole front, on made-up losses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from das_gym.agents.pareto.record import FrontResult, ScoredMasks
from das_gym.agents.pareto.searcher import FrontSearch, log_goodness
from landscapes import rewards

from das_gym.problem.front import front_rows, hypervolume, reference_point
from das_gym.problem.mask_space import every_mask

SAVINGS = np.array([0.03, 0.03, 0.07, 0.07, 0.05, 0.05, 0.1, 0.1])


def saved(masks):
    return masks @ np.resize(SAVINGS, masks.shape[1]) - 0.02


def losses_of(masks):
    return -np.log(rewards(masks))


def play(search, evaluations, n=8):
    while len(search.scored) < evaluations:
        masks = search.ask(min(n, evaluations - len(search.scored)))
        if len(masks) == 0:
            break
        search.tell(masks, losses_of(masks))
    return search


@pytest.mark.parametrize("seed", [0, 1])
def test_front_search_finds_the_front_with_half_of_the_masks(seed):
    masks = every_mask(8)
    share, losses = saved(masks), losses_of(masks)
    search = play(FrontSearch(8, saved, seed), 128)
    truth = masks[front_rows(share, losses)]
    assert search.front().tolist() == truth.tolist()
    reference = reference_point(share, losses)
    first = play(FrontSearch(8, saved, seed), 40)
    assert hypervolume(saved(first.masks), first.losses, reference) > 0.97 * hypervolume(share, losses, reference)


def test_front_search_scores_each_mask_once():
    search = play(FrontSearch(4, saved, 3), 100, n=5)
    assert len(search.masks) == 16 == len(np.unique(search.masks, axis=0))


def test_front_search_continues_exactly():
    whole, part = play(FrontSearch(8, saved, 5), 60), play(FrontSearch(8, saved, 5), 36)
    state = json.loads(json.dumps(part.state_dict()))
    other = FrontSearch(8, saved, 99)
    other.tell(part.masks, part.losses)
    other.load_state_dict(state)
    assert play(other, 60).masks.tolist() == whole.masks.tolist()


def test_front_search_of_many_layers():
    search = play(FrontSearch(30, saved, 0), 48)
    assert len(np.unique(search.masks, axis=0)) == 48
    assert search.front().shape[1] == 30


def test_log_goodness_takes_any_loss():
    values = log_goodness(np.array([-1.0, 0.0, 2.0, np.inf]))
    assert (np.diff(values)[:2] < 0).all()
    assert values[2] == values[3]
    assert (log_goodness(np.array([np.nan, np.inf])) == 0).all()


def test_front_keeps_a_layer_where_skipped_layers_are_removed():
    masks = np.array([[0, 0], [1, 0], [1, 1]], dtype=bool)
    searched = ScoredMasks(masks, np.array([0.0, 0.4, 0.8]), np.array([0.1, 0.2, 0.9]), np.ones(3))
    parts = {"settings": {}, "env_id": "e", "env_kwargs": {}, "cost": "MACs", "layer_names": ("a", "b")}
    parts["searched"] = searched
    assert len(FrontResult(**parts).record()["points"]) == 3
    points = FrontResult(**parts, keeps_a_layer=True).record()["points"]
    assert [point["mask"] for point in points] == [[0, 0], [1, 0]]
