from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import finetune


@pytest.mark.slow
def test_both_ways_give_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "finetune.json"
    finetune.main(["--size", "mini", "--examples", "4", "--batch-size", "2", "--steps", "2", "--json", str(path)])
    written = json.loads(path.read_text())
    assert [len(record["skipped"]) for record in written["records"]] == [0, 4]
    for record in written["records"]:
        assert record["largest_difference_of_a_weight"] < 1e-5
        assert record["ratio"] == pytest.approx(record["cached_steps_per_second"] / record["uncached_steps_per_second"])
    assert "times as many; weights differ by" in capsys.readouterr().out
