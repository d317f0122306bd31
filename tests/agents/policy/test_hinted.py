from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents import MaskSpace, make_agent
from das_gym.agents.policy.hinted import HINT_START, HINTS, Hint, HintedProcess, NeighbourCosts
from das_gym.agents.policy.network import PolicyConfig, PolicyEnsemble, PolicyNetwork

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import every_mask
from tests.agents.policy.chains import STREAM, Chains

N = len(STREAM)
CHAINS = Chains()
SPACE = MaskSpace(Budget(N, 4))


def flips(mask: np.ndarray) -> np.ndarray:
    """(N * N, N) the mask with two units flipped; one where they are the same."""
    return np.array([mask ^ (np.isin(np.arange(N), (i, j))) for i in range(N) for j in range(N)])


def test_neighbour_costs_are_exact_for_runs_of_three():
    masks = every_mask(N)
    costs = NeighbourCosts(CHAINS.statistics)
    np.testing.assert_allclose(costs(masks), [CHAINS.loss(mask) for mask in masks], atol=1e-12)
    for mask in masks[::17]:
        np.testing.assert_allclose(costs.after_flips(mask).ravel(), costs(flips(mask)), atol=1e-12)


def test_hint_orders_masks_by_cost():
    hint = Hint(NeighbourCosts(CHAINS.statistics), SPACE)
    losses = np.array([CHAINS.loss(mask) for mask in SPACE.masks])
    scores = hint(SPACE.masks)
    np.testing.assert_array_equal(np.argsort(-scores, kind="stable"), np.argsort(losses, kind="stable"))
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std() == pytest.approx(1, abs=0.05)
    ends = hint(np.array([np.zeros(N, bool), np.ones(N, bool)]))
    assert np.isfinite(ends).all()
    mask = SPACE.masks[7]
    np.testing.assert_allclose(hint.after_flips(mask).ravel(), hint(flips(mask)), atol=1e-9)


@pytest.mark.parametrize("place", [(2, 1, 1, 0), (2, 1, 1, HINT_START), (0, 4, 3, len(HINTS) - 1)])
def test_hinted_process_matches_the_textbook(place: tuple[int, ...]):
    hint = Hint(NeighbourCosts(CHAINS.statistics), SPACE)
    observed, masks = SPACE.masks[::9], SPACE.masks[4::7]
    values = np.random.default_rng(0).normal(size=len(observed))
    process = HintedProcess(observed, values, place, hint)
    across = process.covariance(masks, observed)
    inner = np.linalg.inv(process.covariance(observed, observed) + process.noise * np.eye(len(observed)))
    left = process.covariance(masks, masks) - across @ inner @ across.T
    posterior = process.posterior(masks)
    np.testing.assert_allclose(posterior.mean, across @ inner @ values, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(posterior.variance, np.diag(left) * process.scale, rtol=1e-5, atol=1e-9)
    mask = masks[3]
    moves = mask[:, None] & ~mask | np.eye(N, dtype=bool)  # swaps, and flips of one unit
    np.testing.assert_allclose(process.flip_means(mask)[moves], process.mean(flips(mask)[moves.ravel()]), atol=1e-9)


def test_policy_bayes_with_an_exact_hint_finds_the_optimum_at_once(tmp_path):
    """The process believes a hint that proves right, and forgets one that does not."""
    PolicyEnsemble([PolicyNetwork(PolicyConfig())]).save(tmp_path / "policy.safetensors")
    settings = {"policy": str(tmp_path / "policy.safetensors")}

    def needed(agent: str, loss, **settings: str) -> float:
        best, counts = min(map(loss, SPACE.masks)), []
        for seed in range(3):
            found = make_agent(agent, SPACE, seed, settings, CHAINS.statistics)
            counts.append(1)
            while loss(mask := found.ask(1)[0]) != best:
                found.tell(mask[None], np.array([np.exp(-loss(mask))]))
                counts[-1] += 1
        return float(np.mean(counts))

    assert needed("policy_bayes", CHAINS.loss, **settings) <= 5
    other = Chains(1).loss
    assert needed("policy_bayes", other, **settings) <= needed("bayes", other) + 10
