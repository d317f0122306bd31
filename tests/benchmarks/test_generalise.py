from __future__ import annotations

import json

import pytest

from benchmarks.generalise import ROUNDS, SUM, main


@pytest.mark.slow
def test_generalise_reports_all_methods(tmp_path):
    main(["--split", "valid", "--budgets", "count", "--json", str(tmp_path / "found.json")])
    record = json.loads((tmp_path / "found.json").read_text())
    assert {"policy", ROUNDS, SUM, "leave_one_out"} < record["regret"].keys()
    assert min(record["regret"]["policy"].values()) >= -1e-6
