from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from das_gym.evaluation import Evaluator
from das_gym.problem import Problem


def plain_losses(problem: Problem, masks: np.ndarray, examples: tuple) -> np.ndarray:
    """A forward per mask, without any sharing, with every token a query in the last stage."""
    vlp, task = problem.vlp, problem.task
    batch, targets = task.inputs(examples), task.targets(examples)
    losses = []
    with torch.inference_mode():
        for mask in masks:
            state = vlp.begin(vlp.encode(batch))
            for stage in vlp.stages:
                outputs = {vlp.layers[i].stream: vlp.run_layer(i, state, bool(mask[i])) for i in stage}
                state = state.with_hidden({**state.hidden, **outputs})
            losses.append(float(task.losses(problem.head(vlp.pool(state)), targets).mean()))
    return np.array(losses)


def fresh(problem: Problem, **kwargs) -> Evaluator:
    return Evaluator(problem.vlp, problem.head, problem.task, **kwargs)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=8))
def test_equal_to_a_plain_forward_per_mask(tiny_problem: Problem, bits: list[list[bool]]):
    masks = np.array(bits)
    examples = tiny_problem.splits.reward[:6]
    got = fresh(tiny_problem).losses(masks, examples)
    np.testing.assert_allclose(got, plain_losses(tiny_problem, masks, examples), atol=1e-5, rtol=1e-5)


def test_exact_in_float64(tiny_kwargs: dict[str, str]):
    from das_gym.problem import ProblemConfig, build_problem

    problem = build_problem(ProblemConfig(**tiny_kwargs))
    problem.vlp.double()
    problem.head.double()
    task = problem.task

    class DoubleTask(type(task)):
        def inputs(self, examples):
            batch = super().inputs(examples)
            return {**batch, "image": batch["image"].double()}

    problem = replace(problem, task=DoubleTask(task.processor, task.answers))
    masks = np.random.default_rng(0).random((10, 12)) < 0.4
    examples = problem.splits.reward[:5]
    np.testing.assert_allclose(
        fresh(problem).losses(masks, examples), plain_losses(problem, masks, examples), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize(("k", "runs"), [(4, 1140), (None, 2730)])
def test_layer_runs_are_the_trees(tiny_problem: Problem, k: int | None, runs: int):
    masks = np.array([m for m in itertools.product((0, 1), repeat=12) if k is None or sum(m) == k])
    evaluator = fresh(tiny_problem)
    evaluator.losses(masks, tiny_problem.splits.reward[:1])
    assert evaluator.spent.layer_runs == runs
    assert evaluator.spent.masks == len(masks)
    assert evaluator.spent.encoded == 1


def test_remembers_until_told_to_forget(tiny_problem: Problem):
    masks, examples = np.eye(12, dtype=bool), tiny_problem.splits.reward[:4]
    evaluator = fresh(tiny_problem)
    first = evaluator.losses(masks, examples)
    runs = evaluator.spent.layer_runs
    np.testing.assert_array_equal(evaluator.losses(masks[::-1], examples), first[::-1])
    assert evaluator.spent.layer_runs == runs
    evaluator.losses(masks, tiny_problem.splits.reward[:3])
    assert evaluator.spent.layer_runs == 2 * runs
    evaluator.forget()
    evaluator.losses(masks, examples)
    assert evaluator.spent.layer_runs == 3 * runs
    evaluator.reset_spent()
    assert evaluator.spent.masks == 0


def test_a_mask_scores_the_same_bits_alone_and_in_company(tiny_problem: Problem):
    masks = np.random.default_rng(1).random((5, 12)) < 0.5
    examples = tiny_problem.splits.reward[:8]
    together = fresh(tiny_problem).losses(masks, examples)
    alone = [fresh(tiny_problem).losses(mask[None], examples)[0] for mask in masks]
    np.testing.assert_array_equal(together, alone)


def test_encoder_outputs_are_bounded(tiny_problem: Problem):
    examples = tiny_problem.splits.reward[:6]
    evaluator = fresh(tiny_problem, cache_bytes=1)
    mask = np.zeros((1, 12), bool)
    once = evaluator.losses(mask, examples)
    evaluator.forget()
    np.testing.assert_array_equal(evaluator.losses(mask, examples), once)
    assert evaluator.spent.encoded == 12


def test_a_broken_loss_counts_as_infinite_and_spoils_no_other(tiny_kwargs: dict[str, str]):
    from das_gym.problem import ProblemConfig, build_problem

    problem = build_problem(ProblemConfig(**tiny_kwargs))
    with torch.no_grad():
        problem.vlp.skippable(3).skip_adapter.up.bias.fill_(float("nan"))
    scores = fresh(problem).evaluate(np.eye(12, dtype=bool), problem.splits.reward[:4])
    assert scores.broken.tolist() == [i == 3 for i in range(12)]
    assert np.isinf(scores.losses[3])
    assert scores.metrics[3] == 0
    assert np.isfinite(np.delete(scores.losses, 3)).all()


@pytest.mark.parametrize("masks", [np.zeros((2, 11)), np.zeros(12), np.zeros((1, 2, 12))])
def test_masks_of_another_shape(tiny_problem: Problem, masks: np.ndarray):
    with pytest.raises(ValueError, match=r"give \(number of masks, 12\)"):
        fresh(tiny_problem).losses(masks, tiny_problem.splits.reward[:1])


def test_no_examples_and_no_masks(tiny_problem: Problem):
    with pytest.raises(ValueError, match="no examples"):
        fresh(tiny_problem).losses(np.zeros((1, 12)), ())
    assert fresh(tiny_problem).losses(np.zeros((0, 12)), tiny_problem.splits.reward[:1]).shape == (0,)
