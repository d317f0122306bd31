from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import masks, memory


@pytest.mark.long
def test_turn_in_two_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "masks.json"
    settings = ["--size", "mini", "--sets", "turn", "--examples", "3", "--plain", "2", "--turns", "2", "--no-memory"]
    masks.main([*settings, "--precision", "float32", "bfloat16-emulated", "--json", str(path)])
    written = json.loads(path.read_text())
    assert [record["precision"] for record in written["records"]] == ["float32", "bfloat16-emulated"]
    for record in written["records"]:
        assert record["layer_runs"] == record["layer_runs_predicted"] < record["layer_runs_plain"] == 3 * 8
        assert record["macs"] == record["macs_predicted"]
        assert record["ratio_whole"] > record["ratio_masked"] > 0
    assert written["records"][0]["largest_difference"] < 1e-5
    assert written["ranks"][0]["spearman"] > 0.9
    assert {"processor", "bfloat16", "threads", "versions"} <= written["machine"].keys()
    assert "METER-mini, float32, a turn of 3:" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_one_set(capsys: pytest.CaptureFixture[str]):
    memory.main(["turn", "--size", "mini", "--examples", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["peak_mib"] >= found["before_mib"] > 100
