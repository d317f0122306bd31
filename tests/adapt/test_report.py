from __future__ import annotations

import dataclasses
import itertools
import re
import time

import numpy as np
import pytest
from das_gym.adapt.evaluate import Evaluation
from das_gym.adapt.report import BASELINE, SUBNET, UNSKIPPED, WIDTH, Row, conclusion, print_report

from das_gym.problem.latency import Spread, measure_latency, speedup


def evaluation(metric: float) -> Evaluation:
    return Evaluation(metric, "accuracy", 0.1, {"accuracy": metric, "loss": 0.1}, 1000)


ROWS = {
    BASELINE: Row(BASELINE, (0, 0), (), 60, 900, 100, 0.0, evaluation(0.95), Spread(1.9, 1.8, 2.0), Spread(1.05, 1.0, 1.1)),
    UNSKIPPED: Row(UNSKIPPED, (0, 0), (), 90, 1_000, 106, -0.06, evaluation(0.975), Spread(2.0, 1.9, 2.1)),
    SUBNET: Row(
        SUBNET, (1, 0), ("text.1",), 80, 800, 83, 0.173, evaluation(0.969), Spread(1.6, 1.5, 1.7), Spread(1.25, 1.2, 1.3)
    ),
}


def rows_of(printed: str) -> dict[str, list[str]]:
    """The cells of each line of the table by its name."""
    names = ("accuracy on test, %", "trainable parameters", "parameters", "MACs saved, %", "latency, ms", "times as fast")
    lines = [(name, line.strip()) for line in printed.splitlines() for name in names if line.strip().startswith(name)]
    return {name: re.findall(r"[\d.,-]+(?: \([^)]*\))?", line[len(name) :]) for name, line in lines}


def test_the_conclusion_is_one_sentence():
    assert conclusion(ROWS) == (
        "Skipping text.1 saves 17.3 % of the baseline's MACs, runs 1.25 times as fast as the unskipped model, "
        "and scores 96.9 % accuracy on test instead of 97.5 %."
    )


def test_the_conclusion_of_a_subnet_alone():
    alone = dataclasses.replace(ROWS[SUBNET], skipped_layers=(), macs_saved=-0.06, speedup=None)
    assert conclusion({BASELINE: ROWS[BASELINE], SUBNET: alone}) == (
        "Skipping nothing takes 6.0 % more MACs than the baseline, and scores 96.9 % accuracy on test."
    )


def test_the_table_names_its_baseline_and_fits(capsys: pytest.CaptureFixture[str]):
    slow = dataclasses.replace(ROWS[UNSKIPPED], latency=Spread(98765.4, 98700.0, 98800.0), parameters=10**9)
    print_report({**ROWS, UNSKIPPED: slow}, "1,000 test examples")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    table = rows_of(printed)
    assert table["accuracy on test, %"] == ["95.00", "97.50", "96.90"]
    assert table["trainable parameters"] == ["60", "90", "80"]
    assert table["MACs saved, %"] == ["0.00", "-6.00", "17.30"]
    assert table["latency, ms"] == ["1.90 (1.80..2.00)", "98765 (98700..98800)", "1.60 (1.50..1.70)"]
    assert table["times as fast"] == ["1.05 (1.00..1.10)", "-", "1.25 (1.20..1.30)"]
    assert " ".join(lines[-2:]) == conclusion(ROWS)


def test_a_baseline_that_was_not_trained_has_costs_alone(capsys: pytest.CaptureFixture[str]):
    bare = dataclasses.replace(ROWS[BASELINE], trainable_parameters=0, evaluation=None, latency=None, speedup=None)
    print_report({**ROWS, BASELINE: bare}, "1,000 test examples")
    table = {name: cells[0] for name, cells in rows_of(capsys.readouterr().out).items()}
    assert [table[name] for name in ("latency, ms", "times as fast")] == ["-", "-"]
    assert [table["accuracy on test, %"], table["trainable parameters"], table["parameters"]] == ["-", "-", "900"]


def test_calls_take_turns():
    order: list[str] = []
    times = measure_latency({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, blocks=3, runs=2)
    assert "".join(name for name, _ in itertools.groupby(order)) == "ababab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    (milliseconds,) = measure_latency({"a": lambda: time.sleep(0.004)}, blocks=1, runs=2)["a"]
    assert milliseconds >= 4


def test_a_ratio_is_of_neighbouring_blocks():
    of, over = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])
    assert speedup(of, over) == Spread(2.0, 2.0, 2.0)
    assert Spread.of(np.arange(5.0)) == Spread(2.0, 1.0, 3.0)
