"""Results of shrinking by hand."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrinking import measuring
from das_gym.adapt.shrinking.measuring import (
    Measured,
    Quality,
    Scored,
    ShrunkModelResult,
    mean_loss,
    time_tokens,
    token_latencies,
)
from das_gym.adapt.shrinking.report import conclusion, measured_table

from das_gym.models.transformers.generation import greedy_settings
from das_gym.problem.latency import Speedup, Spread


def measured(*losses: float) -> Measured:
    names = ("full", "shrunk", "recovered")[: len(losses)]
    duration = Spread(1.0, 1.0, 1.0)
    faster = Speedup(1.5, 1.25, 1.75), Speedup(1.02, 0.9, 1.1)
    rows = {}
    for name, loss in zip(names, losses, strict=True):
        parameters, cached, speedups = (100, 64, (None, None)) if name == "full" else (80, 48, faster)
        rows[name] = ShrunkModelResult(
            name,
            parameters,
            macs=50,
            macs_saved=0.1,
            loss=loss,
            score=0.5,
            low=0.4,
            high=0.6,
            weight_bytes=200,
            kv_bytes=cached,
            prefill_ms=duration,
            decode_ms=duration,
            prefill_speedup=speedups[0],
            decode_speedup=speedups[1],
        )
    return Measured(rows, {name: Scored(rows[name], [], np.array([1.0, 0.0])) for name in names}, "accuracy")


@pytest.mark.parametrize(
    ("losses", "share", "words"),
    [
        ((1.0, 3.0, 1.5), 0.75, "; recovery removed 75 % of the increase in loss."),
        ((1.0, 3.0, 0.5), 1.25, "; recovery removed the whole increase in loss, and the loss is below the baseline's."),
        ((1.0, 3.0, 4.0), -0.5, "; recovery increased the loss further."),
        ((1.0, 0.9, 0.8), None, "on 2 test examples."),
        ((1.0, 3.0), None, "on 2 test examples."),
    ],
)
def test_conclusion_and_loss_regained(losses, share, words):
    results = measured(*losses)
    assert results.loss_regained() == share
    said = conclusion(results)
    assert words in said
    table = measured_table(results)
    assert table.columns[1] == "full model (baseline)"
    assert table.rows[0] == ("accuracy on test, %", *["50.0"] * len(losses))
    assert ("  first token, times as fast", "-", *["1.50 (1.25..1.75)"] * (len(losses) - 1)) in table.rows
    assert table.notes[-1] == said


@pytest.mark.parametrize(("score", "reference"), [(0.75, "control"), (0.25, "baseline")])
def test_conclusion_compares_with_the_better_of_full_model_and_control(score, reference):
    results = measured(1.0, 3.0, 0.75)
    scores = {"full": np.array([0.5, 0.5]), "recovered": np.array([1.0, 1.0]), "control": np.full(2, score)}
    results = replace(
        results, scored={name: Scored(Quality(score, score, 0.4, 0.6), [], own) for name, own in scores.items()}
    )
    assert results.difference()[0] == 1 - max(score, 0.5)
    assert f"{100 * score:.1f} % of the full model trained alike (the control)" in conclusion(results)
    assert f"points compared with the {reference}" in conclusion(results)
    rows = measured_table(results).rows
    assert [row[2] for row in rows[:2]] == [f"{100 * score:.1f}", "40.0..60.0"]
    assert measured_table(results).columns[1:3] == ("full model (baseline)", "control")


def test_loss_of_names_examples_that_are_not_finite(monkeypatch):
    monkeypatch.setattr(measuring, "answer_states", lambda vlm, task, chunk: len(chunk))
    losses = lambda logits, targets: torch.tensor([0.5, math.nan, math.inf])[:logits]  # noqa: E731
    task: Any = SimpleNamespace(targets=lambda chunk: {}, losses=losses)
    vlm: Any = SimpleNamespace(language_head=lambda: lambda features: features)
    examples = [SimpleNamespace(key=key) for key in "abc"]
    assert mean_loss(vlm, task, examples[:1], 3, "loss of the shrunk model") == 0.5
    with pytest.raises(FloatingPointError, match=r"loss of the shrunk model .*'b', 'c'"):
        mean_loss(vlm, task, examples, 3, "loss of the shrunk model")


def test_latencies_of_further_tokens_exclude_the_first(monkeypatch):
    asked: list[tuple[int, int]] = []
    times = [0.03, *[0.005] * measuring.DECODED_TOKENS]
    monkeypatch.setattr(measuring, "time_tokens", lambda *_: np.array(times))
    monkeypatch.setattr(measuring, "greedy_settings", lambda vlm, processor, most, least: asked.append((most, least)))
    processor = SimpleNamespace(encode=lambda prompt, pixels: None)
    found = token_latencies({"full": None, "shrunk": None}, processor, None, 2)  # type: ignore[dict-item]
    assert [each.tolist() for each in found["shrunk"]] == [[30.0, 30.0], [5.0, 5.0]]
    assert set(asked) == {(1 + measuring.DECODED_TOKENS, 1 + measuring.DECODED_TOKENS)}
    assert len(asked) == 2 * 3  # the first of each does not count


def test_time_tokens_times_each_of_a_batch(problem_of):
    problem = problem_of("llava")
    prompts = problem.task.pairs(problem.task.open_ended(problem.splits.test[:2]))
    encodings = [problem.task.processor.encode(prompt, pixels=True) for prompt in prompts]
    settings = greedy_settings(problem.vlp, problem.task.processor, 5, least=5)
    started = time.perf_counter()
    seconds = time_tokens(problem.vlp, problem.task.processor, encodings, settings)
    assert seconds.shape == (5,)
    assert (seconds > 0).all()
    assert seconds.sum() <= time.perf_counter() - started
