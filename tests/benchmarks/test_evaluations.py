from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evaluations import main
from das_gym.files import read_json


def test_evaluations_prints_regret_by_number_of_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "evaluations.json"
    main(["--tables", "meter_vqa", "--seeds", "2", "--evaluations", "6", "9", "--json", str(path)])
    assert "| meter_vqa | exactly 4 of 12 layers | 9 |" in capsys.readouterr().out
    found = read_json(path)["regrets"]
    assert [(each["budget"], each["evaluations"]) for each in found] == [
        (budget, count) for budget in ({"skip_num": 4}, {"macs_saved": 0.2}) for count in (6, 9)
    ]
    assert all(len(each["regrets"]) == 2 and min(each["regrets"]) >= 0 for each in found)
