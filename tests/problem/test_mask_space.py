"""Sets of masks: those that satisfy a budget, and Pareto fronts."""

import itertools
import math

import numpy as np
import pytest
from das_gym.agents import MaskSpace

from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import flipped, hypervolume, reference_point
from tests.agents.landscapes import SAVINGS, SPACES

COST = SPACES["cost"]
EVERY = np.array(list(itertools.product((False, True), repeat=12)))


def test_masks_by_cost():
    expected = {mask.tobytes() for mask in EVERY if mask @ SAVINGS >= 0.15}
    assert {mask.tobytes() for mask in COST.masks} == expected
    assert COST.size == len(expected)


def test_top_by_cost_skips_only_layers_that_save():
    macs = MaskCost(full=100, unskipped=104, savings=np.array([5, -3, 20, 0]))
    space = MaskSpace(Budget(4, saved=0.2, cost=macs))
    assert space.size == 2  # both of the layers that save, and the one that costs nothing either way
    for values in np.random.default_rng(0).random((20, 4)):
        assert space.top(values).tolist() == [True, False, True, False]
    assert space.top(np.full(4, -np.inf)).tolist() == [True, False, True, False]


@pytest.mark.parametrize("n_layers", [36, 72])
@pytest.mark.parametrize("by", ["count", "cost"])
def test_mask_space_never_lists_too_many_masks(n_layers, by):
    """Nothing of 2^36 masks is listed on the way: this would not end."""
    macs = MaskCost(1000, 1000, np.arange(n_layers) % 7 + 1)
    budget = Budget(n_layers, n_layers // 4) if by == "count" else Budget(n_layers, saved=0.1, cost=macs)
    space, rng = MaskSpace(budget), np.random.default_rng(0)
    assert not space.is_enumerable
    assert space.size == (math.comb(n_layers, n_layers // 4) if by == "count" else None)
    masks = space.distinct(100, lambda: space.sample(rng), rng)
    assert len(np.unique(masks, axis=0)) == 100
    assert space.contains(masks).all()
    assert space.contains(flipped(masks[0], space.moves(masks[0]))).all()
    assert space.contains(space.mutate(masks[0], 3, rng)[None])[0]
    with pytest.raises(ValueError, match="cannot be listed"):
        _ = space.masks


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_moves_satisfy_the_budget(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = space.sample(rng)
        moved = [mask, space.mutate(mask, 2, rng), space.mutate(mask, 100, rng), *flipped(mask, space.moves(mask))]
        assert space.contains(np.array(moved)).all()
        if space.skip_num is not None:
            assert (np.array(moved).sum(axis=1) == space.skip_num).all()


def test_neighbours_by_cost_differ_in_one_layer_or_swap_two():
    mask = COST.sample(np.random.default_rng(1))
    expected = {
        other.tobytes()
        for other in COST.masks
        if (changed := (other != mask).sum()) == 1 or (changed == 2 and other.sum() == mask.sum())
    }
    assert {other.tobytes() for other in flipped(mask, COST.moves(mask))} == expected


def test_distinct_masks_end_when_there_are_no_more():
    space, rng = MaskSpace(Budget(6, 2)), np.random.default_rng(0)
    masks = space.distinct(10, lambda: space.masks[0], rng)  # a draw that finds one mask only
    assert len(np.unique(masks, axis=0)) == 10
    seen = {mask.tobytes() for mask in masks}
    assert len(space.distinct(10, lambda: space.masks[0], rng, seen)) == 5
    everything = {mask.tobytes() for mask in space.masks}
    assert space.distinct(10, lambda: space.sample(rng), rng, everything).shape == (0, 6)


def test_mask_space_rejects_free_budgets():
    with pytest.raises(TypeError, match="`budget` is not a Budget: got 12"):
        MaskSpace(12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allows every mask"):
        MaskSpace(Budget(12))


SAVED = np.array([0.0, 0.2, 0.1, 0.4, 0.2, 0.4, 0.3, 0.1])
LOSSES = np.array([1.0, 1.5, 1.0, 3.0, 1.5, np.inf, 3.0, 2.0])


def test_hypervolume_by_hand():
    # from (0, 4): 0.1 wide and 3 high, 0.1 and 2.5, 0.2 and 1
    assert hypervolume(SAVED, LOSSES, (0.0, 4.0)) == pytest.approx(0.1 * 3 + 0.1 * 2.5 + 0.2 * 1)
    assert hypervolume(SAVED, LOSSES, (0.15, 2.0)) == pytest.approx(0.05 * 0.5)
    assert hypervolume(SAVED, LOSSES, (0.4, 4.0)) == 0
    assert hypervolume(SAVED[5:6], LOSSES[5:6], (0.0, 4.0)) == 0


def test_reference_point_by_hand():
    assert reference_point(SAVED[:5], LOSSES[:5]) == (0.0, 3.0)
    with pytest.raises(ValueError, match="non-finite loss"):
        reference_point(SAVED[[0, 5]], LOSSES[[0, 5]])
