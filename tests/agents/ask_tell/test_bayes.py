import numpy as np
import pytest
from das_gym.agents import Bayes
from das_gym.agents.ask_tell.baselines import RandomSearch
from das_gym.agents.ask_tell.bayes import STARTUP_MASKS, log_scores, normal_scores
from landscapes import SPACES, rewards

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace


def search(agent, evaluations, value=rewards, noise=0.0):
    rng = np.random.default_rng(1)
    for _ in range(evaluations // 3):
        masks = agent.ask(3)
        agent.tell(masks, value(masks) + noise * rng.normal(size=len(masks)))
    return agent


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["count", "cost"])
def test_bayes_finds_the_best_mask(name, seed):
    space = SPACES[name]
    best = rewards(space.masks).max()
    agent = search(Bayes(space, seed), 90)
    assert rewards(agent.best()[None])[0] >= 0.999 * best


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many, by count", "many, by cost"])
def test_bayes_beats_random_search_of_twenty_times_the_evaluations(name):
    space = SPACES[name]
    found = rewards(search(Bayes(space, 0), 60).best()[None])[0]
    assert found > rewards(search(RandomSearch(space, 0), 1200).best()[None])[0]


def test_bayes_ignores_the_scale_of_losses():
    one = search(Bayes(SPACES["count"], 3), 30)
    other = search(Bayes(SPACES["count"], 3), 30, value=lambda masks: 5.0 * np.log(rewards(masks)) - 100.0)
    assert list(one.rewards) == list(other.rewards)


def test_bayes_skips_each_layer_about_as_often_at_first():
    masks = Bayes(MaskSpace(Budget(12, 4)), 0).ask(6)
    assert (masks.sum(axis=0) == 2).all()


def test_bayes_starts_with_small_masks_where_many_layers_are_skipped():
    space = MaskSpace(Budget(36, 12))
    agent, costs = Bayes(space, 0), np.arange(36.0)
    for _ in range(6):
        masks = agent.ask(3)
        assert (masks.sum(axis=1) == 2).all()
        agent.tell(masks, np.exp(-(masks @ costs)))
        assert agent.best().sum() == 12
    assert (agent.scored_masks().sum(axis=0) == 1).all()
    assert agent.best()[0]
    assert space.contains(agent.ask(6)).all()


def test_log_scores_by_hand():
    np.testing.assert_allclose(log_scores([1.0, np.e, np.e**2]), [-1.22474487, 0.0, 1.22474487], atol=1e-8)
    np.testing.assert_allclose(log_scores([0.0, 0.1, 0.2]), [-1.22474487, 0.0, 1.22474487], atol=1e-8)
    assert (log_scores([1e100] * 3) == 0.0).all()


def test_bayes_starts_with_masks_that_skip_no_more_than_needed():
    space, agent = SPACES["cost"], Bayes(SPACES["cost"], 0)
    for _ in range(2):
        masks = agent.ask(3)
        for mask in masks:
            fewer = np.array([mask & (np.arange(space.n_layers) != layer) for layer in np.flatnonzero(mask)])
            assert space.contains(mask[None]).all()
            assert not space.contains(fewer).any()
        agent.tell(masks, rewards(masks))
    assert len(agent.rewards) == 6


def test_normal_scores_by_hand():
    scores = normal_scores([0.3, 0.1, 0.3, 0.9])
    assert scores[0] == scores[2] == 0.0
    np.testing.assert_allclose(scores[[1, 3]], [-1.15034938, 1.15034938])
    np.testing.assert_allclose(normal_scores([5.0]), [0.0], atol=1e-12)


def test_bayes_drops_the_assumption_that_skipping_hurts():
    """With the assumption it needs about 1.5 times as many evaluations here."""
    space, rng = SPACES["cost"], np.random.default_rng(3)
    single, both = rng.normal(-0.05, 0.2, 12), np.triu(rng.normal(0, 0.06, (12, 12)), 1)

    def helps(masks):
        return np.exp(-1.0 - masks @ single - ((masks.astype(float) @ both) * masks).sum(axis=1))

    best = helps(space.masks).max()
    found = [helps(search(Bayes(space, seed), 33, value=helps).best()[None])[0] == pytest.approx(best) for seed in range(8)]
    assert sum(found) >= 4


@pytest.mark.parametrize("count", [1, 9])
def test_bayes_alternates_by_turns_not_by_masks(count):
    """By masks, 9 a turn would leave every turn to the same process, and many observations improve the same settings."""
    agent = Bayes(MaskSpace(Budget(30, 8)), seed=0)
    asks = 0
    while len(agent.rewards) < 36:
        masks = agent.ask(count)
        asks += len(agent.rewards) >= STARTUP_MASKS
        agent.tell(masks, masks[:, ::2].mean(axis=1))
    assert agent.turns == 1 + asks
