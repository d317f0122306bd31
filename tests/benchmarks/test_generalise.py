from __future__ import annotations

import json

import pytest

from benchmarks.generalise import GREEDY_RULE, LEAST, main


@pytest.mark.slow
def test_generalise_reports_all_methods_and_searches(tmp_path, capsys):
    words = ["--split", "valid", "--budgets", "count", "--search", "1", "--seeds", "1", "--evaluations", "30"]
    main([*words, "--json", str(tmp_path / "found.json")])
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "bayes: median" in printed
    assert {"policy", GREEDY_RULE, LEAST, "leave_one_out"} < record["regret"].keys()
    assert min(record["regret"]["policy"].values()) >= -1e-6
    assert set(record["searches"]) == {"bayes", "policy_bayes"}
