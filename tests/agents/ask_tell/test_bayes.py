from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents import Bayes, RandomSearch
from das_gym.agents.ask_tell.bayes import log_scores, normal_scores
from landscapes import SPACES, rewards

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace

MANY = MaskSpace(Budget(36, 12))


def search(agent, evaluations, value=rewards, noise=0.0):
    rng = np.random.default_rng(1)
    for _ in range(evaluations // 3):
        masks = agent.ask(3)
        agent.tell(masks, value(masks) + noise * rng.normal(size=len(masks)))
    return agent


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["count", "cost"])
def test_it_finds_the_best_mask(name, seed):
    space = SPACES[name]
    best = rewards(space.masks).max()
    agent = search(Bayes(space, seed), 90)
    assert rewards(agent.best()[None])[0] >= 0.999 * best


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many, by count", "many, by cost"])
def test_of_too_many_masks_it_finds_a_better_one_than_twenty_times_as_many_random_ones(name):
    space = SPACES[name]
    found = rewards(search(Bayes(space, 0), 60).best()[None])[0]
    assert found > rewards(search(RandomSearch(space, 0), 1200).best()[None])[0]


def test_rising_functions_of_the_reward_make_no_difference():
    one = search(Bayes(SPACES["count"], 3), 45)
    other = search(Bayes(SPACES["count"], 3), 45, value=lambda masks: 100.0 + 5.0 * np.log(rewards(masks)))
    assert list(one.reported) == list(other.reported)


def test_among_many_layers_losses_and_multiples_of_them_make_no_difference():
    one = search(Bayes(MANY, 3), 18)
    other = search(Bayes(MANY, 3), 18, value=lambda masks: 5.0 * np.log(rewards(masks)) - 100.0)
    assert list(one.reported) == list(other.reported)


def test_among_many_layers_scores_keep_how_far_apart_they_are_and_one_bad_mask_bends_little():
    def gaps(*losses):
        return -np.diff(Bayes(MANY, 0)._scores(np.exp(-np.array(losses)).tolist()))

    near = gaps(1.0, 1.3, 1.31, 1.6)
    assert near[1] < 0.4 * near[0]  # ranks alone: 0.77
    assert (gaps(1.0, 1.1, 1.2, 1.3, 1.4, 50.0) > 0.2).all()  # logarithms alone: 0.0055


def test_log_scores():
    np.testing.assert_allclose(log_scores([1.0, np.e, np.e**2]), [-1.22474487, 0.0, 1.22474487], atol=1e-8)
    np.testing.assert_allclose(log_scores([0.0, 0.1, 0.2]), [-1.22474487, 0.0, 1.22474487], atol=1e-8)
    assert (log_scores([1e100] * 3) == 0.0).all()


def test_the_first_masks_skip_no_more_than_the_budget_asks_for():
    space, agent = SPACES["cost"], Bayes(SPACES["cost"], 0)
    for _ in range(2):
        masks = agent.ask(3)
        for mask in masks:
            fewer = np.array([mask & (np.arange(space.n_layers) != layer) for layer in np.flatnonzero(mask)])
            assert space.contains(mask[None]).all()
            assert not space.contains(fewer).any()
        agent.tell(masks, rewards(masks))
    assert len(agent.reported) == 6


def test_noisy_is_yes_or_no():
    with pytest.raises(ValueError, match="noisy='no' is not allowed; give True or False"):
        Bayes(SPACES["count"], 0, noisy="no")


def test_equal_rewards_do_no_harm():
    agent = search(Bayes(SPACES["count"], 0), 60, value=lambda masks: np.zeros(len(masks)))
    assert len(agent.reported) == 60


@pytest.mark.slow
def test_of_noisy_rewards_the_answer_is_no_lucky_mask():
    space, losses = SPACES["count"], {}
    for noisy in (False, True):
        regrets = []
        for seed in range(20):
            agent = search(Bayes(space, seed, noisy=noisy), 90, noise=0.05)
            regrets.append(rewards(space.masks).max() - rewards(agent.best()[None])[0])
        losses[noisy] = np.mean(regrets)
    assert losses[True] < losses[False]


def test_normal_scores():
    scores = normal_scores([0.3, 0.1, 0.3, 0.9])
    assert scores[0] == scores[2] == 0.0
    np.testing.assert_allclose(scores[[1, 3]], [-1.15034938, 1.15034938])
    np.testing.assert_allclose(normal_scores([5.0]), [0.0], atol=1e-12)


def test_where_skipping_helps_it_does_not_believe_that_it_hurts():
    """With that belief it needs about half as many evaluations again here."""
    space, rng = SPACES["cost"], np.random.default_rng(3)
    single, both = rng.normal(-0.05, 0.2, 12), np.triu(rng.normal(0, 0.06, (12, 12)), 1)

    def helps(masks):
        return np.exp(-1.0 - masks @ single - ((masks.astype(float) @ both) * masks).sum(axis=1))

    best = helps(space.masks).max()
    found = [helps(search(Bayes(space, seed), 33, value=helps).best()[None])[0] == pytest.approx(best) for seed in range(8)]
    assert sum(found) >= 4
