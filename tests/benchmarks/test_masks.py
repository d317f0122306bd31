from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import masks


@pytest.mark.slow
def test_turn_in_two_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "masks.json"
    settings = ["--size", "mini", "--sets", masks.TURN, "--examples", "3", "--plain", "2"]
    masks.main([*settings, "--precision", "float32", "bfloat16-emulated", "--json", str(path)])
    records = json.loads(path.read_text())["mini"]
    assert [record["precision"] for record in records] == ["float32", "bfloat16-emulated"]
    for record in records:
        assert record["layer_runs"] < record["layer_runs_plain"] == 3 * 8
        assert record["ratio_full"] > record["ratio_masked"] > 0
    assert records[0]["largest_difference"] < 1e-5
    assert "METER-mini, float32, a turn of 3:" in capsys.readouterr().out
