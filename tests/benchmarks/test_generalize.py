import numpy as np
import pytest

from benchmarks import generalize
from das_gym.tables.suite import load_suite


def test_generalize_reports_all_methods_and_continues(made_up_suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generalize, "SEARCHES", {"random": 1, "bayes": 1})
    words = ["--suite", str(made_up_suite), "--split", "test", "--sb3-seeds", "0", "--cache", str(tmp_path)]
    generalize.main(words)
    printed = capsys.readouterr().out
    for row in ("| block_influence_tokens | 0 |", "| leave_one_out | n + 1 |", "| random | 5 |", "| bayes | 30 |"):
        assert row in printed
    monkeypatch.setattr(generalize, "run_agent", None)
    generalize.main(words)
    assert printed.endswith(capsys.readouterr().out)


def test_rules_and_searches_measure_the_suite(made_up_suite):
    suite = load_suite(made_up_suite, "valid", problems=3)
    found = generalize.search_regrets(suite, "random")
    assert found.shape == (len(suite.problems), len(generalize.COUNTS))
    assert (np.diff(found, axis=1) <= 0).all()
    assert found[:, 0].mean() == pytest.approx(1, abs=0.6)  # one random mask


def test_cluster_interval_by_hand():
    values, clusters = np.array([1.0, 1.0, 3.0, 3.0, 5.0, 5.0]), np.array(["a", "a", "b", "b", "c", "c"])
    # sums of residuals are -4, 0, 4: the error is sqrt(3 / 2 * 32) / 6, as of the three means 1, 3, 5
    error = np.std([1, 3, 5], ddof=1) / np.sqrt(3)
    assert np.sqrt(1.5 * 32) / 6 == pytest.approx(error)
    low, high = generalize.cluster_interval(values, clusters)
    assert (low, high) == pytest.approx((3 - 4.27 * error, 3 + 4.27 * error), abs=0.01)
