"""The search of a whole front, on made-up losses."""

import numpy as np
import pytest
from das_gym.agents import MaskSpace
from das_gym.agents.ask_tell.front import FrontSearch, log_goodness
from landscapes import rewards

from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import every_mask, front_rows, hypervolume, reference_point

SAVINGS = np.array([3, 3, 7, 7, 5, 5, 10, 10])


def search_config(seed, n_layers=8):
    cost = MaskCost(100, 102, np.resize(SAVINGS, n_layers))
    return FrontSearch(MaskSpace(Budget(n_layers, saved=0.0, cost=cost)), seed)


def play(search, evaluations, n=8):
    while len(search.rewards) < evaluations:
        masks = search.ask(min(n, evaluations - len(search.rewards)))
        if len(masks) == 0:
            break
        search.tell(masks, np.log(rewards(masks)))
    return search


@pytest.mark.parametrize("seed", [0, 1])
def test_front_search_finds_the_front_with_half_of_the_masks(seed):
    masks, search = every_mask(8), play(search_config(seed), 128)
    saved, losses = search.saved(masks), -np.log(rewards(masks))
    scored, first = search.scored_masks(), search.scored_masks()[:40]
    found = scored[front_rows(search.saved(scored), -np.log(rewards(scored)))]
    assert found.tolist() == masks[front_rows(saved, losses)].tolist()
    reference = reference_point(saved, losses)
    volume = hypervolume(search.saved(first), -np.log(rewards(first)), reference)
    assert volume > 0.97 * hypervolume(saved, losses, reference)


def test_front_search_scores_each_mask_once():
    masks = play(search_config(3, 4), 100, n=5).scored_masks()
    assert len(masks) == 16 == len(np.unique(masks, axis=0))


def test_front_search_of_many_layers():
    assert len(np.unique(play(search_config(0, 30), 48).scored_masks(), axis=0)) == 48


def test_log_goodness_takes_any_loss():
    values = log_goodness(np.array([-1.0, 0.0, 2.0, np.inf]))
    assert (np.diff(values)[:2] < 0).all()
    assert values[2] == values[3]
    assert (log_goodness(np.array([np.nan, np.inf])) == 0).all()
