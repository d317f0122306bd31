"""Estimates of time and memory: runs along the mask tree as the engine counts them, sums of parts, and the setting."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from das_gym.engine.evaluator import Evaluator
from das_gym.problem.estimate import (
    Part,
    Walk,
    count_runs,
    format_estimate,
    print_estimate,
    scoring,
    time_examples,
    time_walk,
)
from das_gym.problem.loading import Problem
from das_gym.problem.mask_space import every_mask

METER = tuple((layer, 6 + layer) for layer in range(6))


@pytest.mark.parametrize(("skip_num", "runs"), [(4, 1140), (None, 2730)])
def test_count_runs_of_meter(skip_num: int | None, runs: int):
    kept, full, _, leaves = count_runs(every_mask(12, skip_num), METER)
    assert kept.sum() == runs  # as `python -m benchmarks.masks` counts them
    assert full.max() == 1
    assert leaves == (495 if skip_num else 4096)


def test_count_runs_agrees_with_the_engine(small_problem: Problem):
    vlp, examples = small_problem.vlp, small_problem.splits.reward[:3]
    masks = np.random.default_rng(0).random((9, len(vlp.layers))) < 0.4
    evaluator = Evaluator(vlp, small_problem.head, small_problem.task, batch_size=3)
    evaluator.losses(masks, examples)
    kept, _, skipped, leaves = count_runs(masks, vlp.stages)
    assert (kept.sum(), leaves) == (evaluator.spent.layer_runs, evaluator.spent.masks)
    assert skipped >= evaluator.spent.adapter_runs  # which leaves out those that compute nothing


def test_walk_adds_what_runs_and_leaves_out_what_is_known():
    walk = Walk(encode=9.0, begin=4.0, units=np.array([1.0, 2.0]), skip=0.5, leaf=0.25, cached_bytes=0, state_bytes=0)
    masks, stages = np.array([[False, False], [False, True]]), ((0,), (1,))
    assert walk.forward == 7.25
    assert walk.seconds(masks, stages) == 4 + 1 + 2 + 0.5 + 2 * 0.25
    assert walk.seconds(masks, stages, kept_share=1.0) == 0.5 + 2 * 0.25


def test_time_walk_measures_every_unit_and_changes_nothing(small_problem: Problem):
    before = small_problem.evaluator.spent
    walk = time_walk(small_problem, small_problem.splits.reward)
    assert walk.units.shape == (6,)
    assert (walk.units > 0).all()
    assert min(walk.leaf, walk.state_bytes, walk.cached_bytes) > 0
    assert walk.begin >= 0
    assert small_problem.evaluator.spent == before


def test_time_walk_includes_encoders_where_one_batch_has_all_examples(
    small_problem: Problem, monkeypatch: pytest.MonkeyPatch
):
    encode_items = small_problem.vlp.encode_items
    monkeypatch.setattr(small_problem.vlp, "encode_items", lambda *args: time.sleep(0.02) or encode_items(*args))
    assert 2 * time_walk(small_problem, small_problem.splits.reward[:2]).encode > 0.02


def test_scoring_bounds_what_is_kept(small_problem: Problem):
    walk = Walk(1.0, 1.0, np.ones(6), 0.0, 1.0, cached_bytes=10, state_bytes=100)
    masks = np.zeros((1, 6), dtype=bool)
    part = scoring(small_problem, walk, "search", 20, [masks, masks], 5.0)
    states = 20 * 100 * (len(small_problem.vlp.stages) + 1)
    # The hidden states of the full model, the only mask, are kept: every turn but the first runs its leaf alone.
    assert part.seconds == 20 * (1 + walk.forward + 2 * 5 * walk.leaf)
    assert part.kept == 20 * 10 + states
    assert part.held == 4 * small_problem.walk_bytes


def test_format_estimate_adds_what_is_kept_and_the_largest_that_is_held():
    gib = 2**30
    parts = (
        Part("a", 3599.0, kept=gib, held=4 * gib),
        Part("b", 2.0, kept=2 * gib, held=gib),
        Part("c", 9e3, is_certain=False),
    )
    words = "estimate: 1 h 0 min (a 59 min 59 s, b 2 s), c up to 2 h 30 min more, peak memory 6.00 GiB"
    assert format_estimate(parts, before=gib) == words


def test_time_examples_takes_a_whole_batch_where_that_is_fast():
    sizes: list[int] = []
    seconds, size = time_examples(sizes.append, 10, torch.device("cpu"))
    assert (seconds < 0.01, size) == (True, 10)
    assert sizes == [2, 2, 10, 10]


@pytest.mark.parametrize("estimate", [None, False, True])
def test_print_estimate_and_its_setting(estimate: bool | None, capsys: pytest.CaptureFixture[str]):
    settings = SimpleNamespace(estimate=estimate, resume=None)
    assert print_estimate(settings, lambda: [Part("search", 3.0)]) == (estimate is True)
    assert capsys.readouterr().out.startswith("estimate: 3 s (search 3 s), peak memory") == (estimate is not False)
