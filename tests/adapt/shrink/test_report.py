"""What a comparison of models comes to, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrink import report
from das_gym.adapt.shrink.report import Comparison, Row, caption, conclusion, headings, latencies, loss_of

from das_gym.problem.latency import Speedup, Spread


def comparison(*losses: float) -> Comparison:
    names = ("full", "shrunk", "recovered")[: len(losses)]
    time, faster = Spread(1.0, 1.0, 1.0), [Speedup(1.5, 1.25, 1.75), Speedup(1.02, 0.9, 1.1)]
    rows = {
        name: Row(name, 0.5, 0.4, 0.6, loss, 100 - 20 * (n > 0), 200, 50, 0.1, time, time, *(faster if n else (None, None)))
        for n, (name, loss) in enumerate(zip(names, losses, strict=True))
    }
    return Comparison(rows, {}, {name: np.array([1.0, 0.0]) for name in names}, "accuracy")


@pytest.mark.parametrize(
    ("losses", "share", "words"),
    [
        ((1.0, 3.0, 1.5), 0.75, "recovery took off 75 % of the loss that deletion added"),
        ((1.0, 3.0, 4.0), -0.5, "recovery made the loss worse than it found it"),
        ((1.0, 1.25, 0.75), 2.0, "; its loss is lower than the full model's."),  # not 200 % of what deletion added
        ((1.0, 0.9, 0.8), None, "on 2 test examples; its loss is lower than the full model's."),
        ((1.0, 3.0), None, "on 2 test examples."),
    ],
)
def test_what_recovery_regained(losses: tuple[float, ...], share: float | None, words: str):
    compared = comparison(*losses)
    assert compared.regained() == share
    assert words in conclusion(compared)
    assert "saves 10.00 % of the baseline's MACs and 20.0 % of its parameters." in conclusion(compared)
    assert (
        "Relative to the baseline, the first token comes 1.50 (1.25 to 1.75) times as fast, and each further one 1.02 "
        "(0.90 to 1.10) times as fast, which is not measurably faster." in conclusion(compared)
    )
    assert headings(compared)[0] == "full model (baseline)"
    assert ("one architecture, timed once" in caption(compared)) == (len(losses) == 3)


def test_a_loss_that_is_no_number_names_its_examples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "answer_features", lambda vlm, task, chunk: len(chunk))
    losses = lambda logits, targets: torch.tensor([0.5, math.nan, math.inf])[:logits]  # noqa: E731
    task: Any = SimpleNamespace(targets=lambda chunk: {}, losses=losses)
    vlm: Any = SimpleNamespace(own_head=lambda: lambda features: features)
    examples = [SimpleNamespace(key=key) for key in "abc"]
    assert loss_of(vlm, task, examples[:1], 3, "loss of the shrunk model") == 0.5
    with pytest.raises(
        FloatingPointError, match=r"^the loss of the shrunk model is not a number, on examples 'b', 'c': its"
    ):
        loss_of(vlm, task, examples, 3, "loss of the shrunk model")


def test_further_tokens_are_what_many_take_beyond_the_first(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    times = {"full 1": 30.0, f"full {1 + report.DECODED}": 30.0 + 5 * report.DECODED}
    monkeypatch.setattr(report, "measure_latency", lambda calls, blocks, runs: {n: np.array([times[n]]) for n in calls})
    monkeypatch.setattr(report, "left_padded", lambda *_: {})
    monkeypatch.setattr(report, "pad_token", lambda *_: 0)
    monkeypatch.setattr(report, "greedy_settings", lambda vlm, processor, most, least: asked.append((most, least)))
    processor = SimpleNamespace(encode=lambda prompt, pixels: None)
    found = latencies({"full": None}, processor, None, 1)  # type: ignore[dict-item]
    assert [each.tolist() for each in found["full"]] == [[30.0], [5.0]]
    assert asked == [(1, 1), (1 + report.DECODED, 1 + report.DECODED)]
