"""Statistics of layers and of blocks of layers."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import das_gym.problem.statistics as statistics_module
from das_gym.models.base import VLP, Layer, State
from das_gym.problem.rewards import MAX_LOSS
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity, measure_sensitivity
from das_gym.problem.statistics import (
    DEFAULT_STATISTICS,
    STATISTICS,
    Statistic,
    check_statistics,
    compute_statistics,
    leave_one_out,
    masks_needed,
    register_statistic,
    single_removals,
)


@pytest.fixture(scope="module")
def measured(tiny_problem) -> StatisticInputs:
    examples = tiny_problem.splits.reward[:12]
    activity = measure_activity(tiny_problem.evaluator, examples)
    return StatisticInputs(tiny_problem.evaluator, tiny_problem.costs, examples, activity)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_deterministic_and_bounded(measured, name):
    statistic = STATISTICS[name]
    raw = np.asarray(statistic.compute(measured))
    assert raw.shape == (12,)
    assert (raw >= statistic.low).all()
    assert (raw <= statistic.high).all()
    np.testing.assert_array_equal(raw, statistic.compute(measured))
    assert statistic.formula


@pytest.mark.parametrize("name", STATISTICS)
def test_masks_needed_counts_scored_masks(measured, name):
    measured.evaluator.forget()
    measured.evaluator.reset_spent()
    STATISTICS[name].compute(dataclasses.replace(measured))
    assert measured.evaluator.spent.masks == masks_needed([name], 12) == (13 if name == "leave_one_out" else 0)


def test_compute_statistics_clips_values(measured):
    wild = dataclasses.replace(STATISTICS["depth"], compute=lambda _: np.array([-5.0, *range(10), 1e9]))
    values = compute_statistics([wild], measured)
    assert values.dtype == np.float32
    assert values.min() == 0
    assert values.max() == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.ones(5), r"\(5,\), expected \(12,\)"),
        (np.ones((12, 1)), r"\(12, 1\), expected \(12,\)"),
        (None, r"\(\), expected \(12,\)"),
        (["much"] * 12, "did not return numbers"),
        ([0.0, np.nan, *range(8), np.inf, 1.0], r"layers \[1, 10\]: got \[nan, inf\]"),
    ],
    ids=["short", "matrix", "nothing", "words", "not finite"],
)
def test_statistics_of_users_are_checked(measured, given, said):
    own = Statistic("own", "mine", 0.0, 1.0, lambda inputs: given)
    with pytest.raises(ValueError, match=f"'own'.*{said}"):
        compute_statistics([own], measured)


def test_macs_share_is_of_the_full_model(measured):
    macs = STATISTICS["macs_share"].compute(measured)
    assert 0 < macs.sum() < 1
    assert len(set(macs[:5].tolist())) == 1
    assert 0 < macs[5] < macs[4]  # the last stage computes its pooled token alone


def test_activity_does_not_depend_on_padding(tiny_problem):
    examples = sorted(tiny_problem.splits.reward[:12], key=lambda e: len(e.question))
    together = measure_activity(tiny_problem.evaluator, examples)
    apart = [measure_activity(tiny_problem.evaluator, [example]) for example in examples]
    for name in ("block_influence_pooled", "block_influence_tokens", "residual_norm"):
        np.testing.assert_allclose(getattr(together, name), np.mean([getattr(a, name) for a in apart], axis=0), rtol=1e-4)


def test_measure_activity_scores_the_full_model(tiny_problem):
    evaluator, examples, full = tiny_problem.evaluator, tiny_problem.splits.reward[:7], np.zeros((1, 12), bool)
    evaluator.forget()
    alone = evaluator.losses(full, examples)
    evaluator.forget()
    evaluator.reset_spent()
    measure_activity(evaluator, examples)
    runs = evaluator.spent.layer_runs
    assert evaluator.losses(full, examples) == alone
    assert (evaluator.spent.masks, evaluator.spent.layer_runs) == (1, runs)


@torch.no_grad()
def test_influence_is_of_the_pooled_token(tiny_problem, monkeypatch):
    """Each example's own last token, say: a causal model's first one has seen nothing."""
    vlp, examples = tiny_problem.vlp, tiny_problem.splits.reward[:3]
    state = vlp.embed(tiny_problem.evaluator.encoder_cache(tiny_problem.task.pairs(examples)))
    after = vlp.run_layer(0, state, skipped=False)
    monkeypatch.setattr(type(vlp), "pooled_tokens", lambda self, state, stream: torch.tensor([2, 1, 3]))
    rows = [torch.cosine_similarity(state.hidden["text"][i, at], after[i, at], dim=0) for i, at in enumerate((2, 1, 3))]
    found = measure_activity(tiny_problem.evaluator, examples).block_influence_pooled[0]
    assert found == pytest.approx(1 - float(torch.stack(rows).mean()), abs=1e-5)


class TwoLayers:
    """Two layers of one stream, whose outputs are written down: a stand-in for a model and its evaluator."""

    layers = (Layer("joint.0", "joint", 0), Layer("joint.1", "joint", 1))
    stages = ((0,), (1,))
    outputs = (((0.0, 1.0), (0.0, 4.0), (9.0, -9.0)), ((0.0, -1.0), (3.0, 4.0), (0.0, 0.0)))

    def __init__(self):
        self.vlp = self
        self.task = SimpleNamespace(pairs=lambda examples: examples)

    def watch_full_model(self, examples, watch):
        for example in examples:
            state = self.encoder(self.task.pairs([example]))
            for index in range(2):
                output = self.run_layer(index, state, skipped=False)
                watch([example], index, state, output)
                state = state.with_hidden({"joint": output})

    def encoder(self, real_tokens):
        attend = torch.arange(3)[None, None, None] < torch.tensor(real_tokens)[:, None, None, None]
        return State({"joint": torch.tensor([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])}, {"joint": attend})

    pooled_tokens, split_rows = VLP.pooled_tokens, VLP.split_rows

    def run_layer(self, index, state, skipped):
        assert not skipped
        return torch.tensor([self.outputs[index]])

    def losses(self, masks, examples):
        return 1.0 + masks @ np.array([0.5, -0.25])


def test_statistics_by_hand():
    """Token 0 turns by 90 degrees, then by 180; token 1 doubles, then turns to a cosine of 0.8; token 2 is padding.

    One example has both tokens, the other only the first.
    """
    model, examples = TwoLayers(), (2, 1)
    activity = measure_activity(model, examples)
    np.testing.assert_allclose(activity.block_influence_pooled, [1.0, 2.0], atol=1e-7)
    np.testing.assert_allclose(activity.block_influence_tokens, [((1 + 0) / 2 + 1) / 2, ((2 + 0.2) / 2 + 2) / 2], atol=1e-7)
    root = np.sqrt(2.0)
    np.testing.assert_allclose(activity.residual_norm, [((root + 1) / 2 + root) / 2, ((2 + 0.75) / 2 + 2) / 2], atol=1e-7)
    costs = SimpleNamespace(
        layer_macs=np.array([10, 30]), macs_full=100, layer_parameters=np.array([4, 6]), parameters_full=40
    )
    np.testing.assert_allclose(activity.angular, [(0.25 + 0.5) / 2, ((1 + np.arccos(0.8) / np.pi) / 2 + 1) / 2], atol=1e-7)
    inputs = StatisticInputs(model, costs, examples, activity)
    values = compute_statistics(check_statistics((*DEFAULT_STATISTICS, "leave_one_out")), inputs)
    expected = {
        "stream": [0, 0],
        "depth": [0, 1],
        "macs_share": [0.1, 0.3],
        "parameters_share": [0.1, 0.15],
        "block_influence_pooled": [1, 2],
        "block_influence_tokens": [0.75, 1.55],
        "residual_norm": activity.residual_norm,
        "angular": activity.angular,
        "leave_one_out": [0.5, -0.25],
    }
    assert tuple(expected)[:-1] == DEFAULT_STATISTICS
    np.testing.assert_allclose(values, np.stack(list(expected.values()), axis=1), rtol=1e-6, atol=1e-7)


def test_activity_averages_over_rows():
    """As NLVR2's does, which reads two images: influences are of the two, not their sum."""
    model = TwoLayers()
    alone = measure_activity(model, (2, 1))
    model.task = SimpleNamespace(pairs=lambda examples: [tokens for tokens in examples for _ in range(2)])
    encoder, outputs = model.encoder, torch.tensor(model.outputs)
    model.encoder = lambda tokens: State(
        {"joint": encoder([1]).hidden["joint"].expand(len(tokens), -1, -1)}, {"joint": encoder(tokens).attend["joint"]}
    )
    model.run_layer = lambda index, state, skipped: outputs[index].expand(len(state.hidden["joint"]), -1, -1)
    for name, values in vars(measure_activity(model, (2, 1))).items():
        np.testing.assert_allclose(values, getattr(alone, name), atol=1e-7)


def test_sensitivity_agrees_with_finite_differences(tiny_problem, monkeypatch):
    examples = tiny_problem.splits.reward[:6]
    evaluator, vlp = tiny_problem.evaluator, tiny_problem.vlp
    found = measure_sensitivity(evaluator, examples)
    run, targets = vlp.run_layer, evaluator.task.targets(examples)
    encoded = evaluator.encoder_cache(evaluator.task.pairs(examples))

    @torch.no_grad()
    def losses(index: int, step: float) -> torch.Tensor:
        def moved(at, state, *args, **kwargs):
            hidden = run(at, state, *args, **kwargs)
            return (
                hidden
                if at != index
                else hidden.lerp(run(at, state, True, **{**kwargs, "pooled_only": False})[:, : hidden.shape[1]], step)
            )

        monkeypatch.setattr(vlp, "run_layer", moved)
        features = vlp.forward_encoded(encoded)
        monkeypatch.setattr(vlp, "run_layer", run)
        return evaluator.task.losses(evaluator.head(features), targets).double()

    for index in (0, 3, 7, 11):
        slopes = (losses(index, 1e-3) - losses(index, -1e-3)) / 2e-3
        assert found.taylor[index] == pytest.approx(float(slopes.mean()), rel=0.05, abs=2e-2)
        assert found.fisher[index] == pytest.approx(float((slopes**2).mean().sqrt()), rel=0.05, abs=2e-2)


def test_leave_one_out_by_hand():
    assert single_removals(2).tolist() == [[False, False], [True, False], [False, True]]
    np.testing.assert_allclose(leave_one_out(np.array([1.0, 3.0, 0.75, np.inf])), [2.0, -0.25, MAX_LOSS - 1])


def test_register_statistic_adds_it_or_rejects_it(monkeypatch):
    monkeypatch.setattr(statistics_module, "STATISTICS", dict(STATISTICS))
    register_statistic(Statistic("ones", "1", 0.0, 2.0, lambda inputs: np.ones(2)))
    assert [statistic.name for statistic in check_statistics(["ones", "depth"])] == ["ones", "depth"]
    assert "ones" not in DEFAULT_STATISTICS  # the observation of everybody else stays
    with pytest.raises(ValueError, match="low=1"):
        register_statistic(Statistic("twos", "1", 1, 0, abs))
