from __future__ import annotations

import itertools

import numpy as np
import pytest
from das_gym.agents import MaskSpace

from tests.agents.landscapes import SAVINGS, SPACES

COST = SPACES["cost"]
EVERY = np.array(list(itertools.product((False, True), repeat=12)))


def test_every_mask_of_k():
    space = MaskSpace(6, 2)
    assert space.size == 15
    assert space.masks.shape == (15, 6)
    assert (space.masks.sum(axis=1) == 2).all()
    assert len(np.unique(space.masks, axis=0)) == 15
    assert space.contains(space.masks).all()
    assert not space.contains(np.zeros((1, 6), bool))[0]


def test_every_mask_that_saves_enough():
    expected = {mask.tobytes() for mask in EVERY if mask @ SAVINGS >= 0.15}
    assert {mask.tobytes() for mask in COST.masks} == expected
    assert COST.size == len(expected)


def test_savings_need_not_add_up():
    def squares(masks):
        return (masks.sum(axis=1) / 4) ** 2

    space = MaskSpace(4, macs_saved=0.5, savings=squares)
    assert space.size == 5  # 3 or 4 of 4
    assert space.top(np.array([0.1, 0.4, 0.3, 0.2])).tolist() == [False, True, True, True]


def test_a_saving_that_skipping_more_undoes():
    def only_the_middle(masks):
        return np.where((masks == [False, True, True, False]).all(axis=1), 0.3, 0.0)

    space = MaskSpace(4, macs_saved=0.2, savings=only_the_middle)
    assert space.size == 1
    for values in np.random.default_rng(0).random((20, 4)):
        assert space.top(values).tolist() == [False, True, True, False]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_moves_keep_the_budget(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = space.sample(rng)
        moved = [mask, space.mutate(mask, 2, rng), space.mutate(mask, 100, rng), *space.neighbours(mask)]
        assert space.contains(np.array(moved)).all()
        if space.skip_num is not None:
            assert (np.array(moved).sum(axis=1) == space.skip_num).all()


def test_neighbours_by_count_are_all_swaps():
    mask = np.arange(6) < 2
    found = {tuple(np.flatnonzero(other)) for other in MaskSpace(6, 2).neighbours(mask)}
    assert found == {(kept, new) for kept in (0, 1) for new in (2, 3, 4, 5)}


def test_neighbours_by_cost_differ_in_one_layer_or_swap_two():
    mask = COST.sample(np.random.default_rng(1))
    expected = {
        other.tobytes()
        for other in COST.masks
        if (changed := (other != mask).sum()) == 1 or (changed == 2 and other.sum() == mask.sum())
    }
    assert {other.tobytes() for other in COST.neighbours(mask)} == expected


def test_a_mutant_differs_by_as_many_swaps_at_most():
    rng = np.random.default_rng(0)
    space, mask = MaskSpace(12, 4), np.arange(12) % 3 == 0
    kept = [int((space.mutate(mask, strength, rng) & mask).sum()) for strength in (1, 2, 3, 4) for _ in range(30)]
    assert kept == [3] * 30 + [2] * 30 + [1] * 30 + [0] * 30


def test_top_by_count_takes_the_first_of_equal_values():
    assert np.flatnonzero(MaskSpace(6, 3).top(np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0]))).tolist() == [0, 1, 3]


def test_top_by_cost_skips_no_layer_that_it_need_not():
    values = np.zeros(12)
    values[[0, 1, 6, 7]] = [4.0, 3.0, 2.0, 1.0]  # 0.02 + 0.02 + 0.07 + 0.07; without layer 1 it is 0.16
    assert np.flatnonzero(COST.top(values)).tolist() == [0, 6, 7]
    for mask in (COST.sample(np.random.default_rng(seed)) for seed in range(50)):
        fewer = np.array([mask & (np.arange(12) != layer) for layer in np.flatnonzero(mask)])
        assert not COST.contains(fewer).any()


def test_distinct_masks_end_when_there_are_no_more():
    space, rng = MaskSpace(6, 2), np.random.default_rng(0)
    masks = space.distinct(10, lambda: space.masks[0], rng)  # a draw that finds one mask only
    assert len(np.unique(masks, axis=0)) == 10
    seen = {mask.tobytes() for mask in masks}
    assert len(space.distinct(10, lambda: space.masks[0], rng, seen)) == 5
    everything = {mask.tobytes() for mask in space.masks}
    assert space.distinct(10, lambda: space.sample(rng), rng, everything).shape == (0, 6)


def test_many_layers_are_not_listed():
    space = SPACES["many, by cost"]
    assert space.size is None
    with pytest.raises(ValueError, match="are too many to list; use an agent that samples them, such as bayes"):
        _ = space.masks
    assert SPACES["many, by count"].size == 735_471
    masks = space.distinct(50, lambda: space.sample(np.random.default_rng(0)), np.random.default_rng(1))
    assert len(np.unique(masks, axis=0)) == 50  # the draw finds one mask only, the others skip more than they need
    assert space.contains(masks).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"skip_num": 13}, r"skip_num=13 is not allowed with 12 skippable layers; use 0\.\.12"),
        ({"skip_num": 2.5}, r"skip_num=2\.5 is not allowed with 12 skippable layers; use 0\.\.12, a whole number"),
        ({"skip_num": True}, "skip_num=True is not allowed"),
        ({"skip_num": "4"}, "skip_num='4' is not allowed"),
        ({"n_layers": 0, "skip_num": 0}, "n_layers=0 is not allowed"),
        ({"n_layers": 2.5, "skip_num": 0}, r"n_layers=2\.5 is not allowed; give a whole number"),
        ({"macs_saved": True, "savings": SAVINGS}, "macs_saved=True is not allowed; give a share of the MACs"),
        ({}, "skip_num=None, macs_saved=None: give exactly one of them"),
        ({"skip_num": 1, "macs_saved": 0.1, "savings": SAVINGS}, "give exactly one of them"),
        ({"macs_saved": 0.1}, "macs_saved needs to know what masks save: give savings"),
        (
            {"macs_saved": 0.6, "savings": SAVINGS},
            r"macs_saved=0\.6 is out of reach.*saves more than 0\.5400; give that or less",
        ),
        ({"macs_saved": float("nan"), "savings": SAVINGS}, "macs_saved=nan is out of reach"),
        ({"macs_saved": 0.1, "savings": SAVINGS[:5]}, r"savings of shape \(5,\); give \(12,\)"),
        ({"n_layers": 24, "macs_saved": 0.6, "savings": np.full(24, 0.02)}, r"saves more than 0\.4800"),
    ],
)
def test_impossible_budgets(arguments, text):
    with pytest.raises(ValueError, match=text):
        MaskSpace(**{"n_layers": 12, **arguments})
