import itertools
import math
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
from das_gym.agents.ask_tell.gaussian_process import (
    GRID,
    AgreementLearner,
    AgreementProcess,
    MaskProcess,
    expected_improvement,
    fit_step,
    invert_lower,
    order_polynomials,
)
from landscapes import SPACES, rewards

MASKS = SPACES["count"].masks


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
def test_order_polynomials_match_explicit_features(n):
    masks = np.array(list(itertools.islice(itertools.product((False, True), repeat=n), 0, 4096, 7)))
    signs = 2.0 * masks - 1.0
    polynomials = order_polynomials(n)
    d = signs @ signs.T
    for order in range(4):
        sets = list(itertools.combinations(range(n), order))
        features = np.array([[np.prod(row[list(chosen)]) for chosen in sets] for row in signs]).reshape(len(signs), -1)
        expected = features @ features.T / max(len(sets), 1)
        found = sum(coefficient * d**power for power, coefficient in enumerate(polynomials[order]))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def direct(process, observed, values, masks):
    covariance = process.covariance(observed, observed) + process.noise * np.eye(len(observed))
    across = process.covariance(masks, observed)
    mean = across @ np.linalg.solve(covariance, values)
    variance = np.diag(process.covariance(masks, masks)) - np.diag(across @ np.linalg.solve(covariance, across.T))
    return mean, variance * process.scale


def test_posterior_matches_the_textbook():
    observed, masks = MASKS[::20], MASKS[5::50]
    values = rewards(observed)
    process = MaskProcess(observed, values)
    mean, variance = direct(process, observed, values, masks)
    posterior = process.posterior(masks)
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(process.mean(masks), mean, rtol=1e-7)
    np.testing.assert_allclose(posterior.variance, variance, rtol=1e-6, atol=1e-12)


def test_observe_shrinks_variances_as_an_observation():
    observed, masks = MASKS[::20], MASKS[5::50]
    process = MaskProcess(observed, rewards(observed))
    posterior = process.posterior(masks)
    for index in (3, 0):
        posterior.observe(index)
        observed = np.concatenate((observed, masks[index : index + 1]))
    _, variance = direct(process, observed, np.zeros(len(observed)), masks)
    np.testing.assert_allclose(posterior.variance, variance, atol=1e-9)


def test_climb_increases_the_likelihood():
    observed = MASKS[::8]
    values = rewards(observed, pairs=0.0)
    place, likelihoods = [2, 1, 3], []
    for _ in range(10):
        process, place = fit_step(partial(MaskProcess, observed, values), place)
        likelihoods.append(process.log_likelihood)
    assert likelihoods == sorted(likelihoods)
    process, again = fit_step(partial(MaskProcess, observed, values), place)
    assert again == place
    assert all(0 <= index < len(choices) for index, choices in zip(place, GRID, strict=True))
    assert place[2] < 3  # no noise in these values


def test_expected_improvement_matches_sampling():
    rng = np.random.default_rng(0)
    mean, deviation = np.array([-1.0, 0.0, 0.3, 2.0]), np.array([0.5, 1.0, 0.01, 0.3])
    draws = rng.normal(mean, deviation, (400_000, 4))
    expected = np.maximum(draws - 0.4, 0.0).mean(axis=0)
    np.testing.assert_allclose(expected_improvement(mean, deviation**2, 0.4), expected, atol=3e-3)
    u = np.linspace(-4, 4, 33)
    exact = [NormalDist().cdf(x) * x + math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in u]
    np.testing.assert_allclose(expected_improvement(u, np.ones(33), 0.0), exact, atol=1e-6)
    assert (expected_improvement(mean, np.zeros(4), 0.4) >= 0).all()


def test_invert_lower_matches_numpy():
    factor = np.tril(np.random.default_rng(0).normal(size=(150, 150))) * 0.05 + np.eye(150)
    np.testing.assert_allclose(invert_lower(factor), np.linalg.inv(factor), atol=1e-10)


def processes():
    rng = np.random.default_rng(0)
    masks, values = rng.random((9, 7)) < 0.4, rng.normal(size=9)
    logs = np.append(rng.normal(size=7), np.log([0.3, 0.4, 1.5, 0.01]))
    return [MaskProcess(masks, values), AgreementProcess(masks, values, logs)]


@pytest.mark.parametrize("process", processes(), ids=["orders", "agreement"])
def test_flip_means_match_means_of_flipped_masks(process):
    mask = np.array([1, 0, 0, 1, 0, 1, 0], dtype=bool)
    found = process.flip_means(mask)
    swaps = [(i, j) for i in np.flatnonzero(mask) for j in np.flatnonzero(~mask)]
    for i, j in [*swaps, *((i, i) for i in range(7))]:
        other = mask.copy()
        other[[i, j]] ^= True
        assert found[i, j] == pytest.approx(process.mean(other[None])[0], abs=1e-12)


def test_agreement_gradient_matches_differences():
    process = processes()[1]
    logs, values = np.append(np.log(process.layer_weights), np.log([0.3, 0.4, 1.5, 0.01])), np.arange(9.0) % 4 - 1.5
    found, step = AgreementProcess(process.masks, values, logs).gradient(), 1e-5
    for i in range(len(logs)):
        up, down = (AgreementProcess(process.masks, values, logs + s * np.eye(11)[i]) for s in (step, -step))
        assert found[i] == pytest.approx((up.log_likelihood - down.log_likelihood) / (2 * step), rel=1e-5, abs=1e-6)


def test_agreement_learner_finds_the_layers_that_matter():
    masks = np.random.default_rng(1).random((60, 12)) < 0.3
    learner = AgreementLearner(12)
    for _ in range(10):
        process = learner.fit(masks, masks @ np.array([1.0, -2.0, *np.zeros(10)]), 4)
    assert process.layer_weights[:2].sum() > 0.8
