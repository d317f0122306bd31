from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import plain_forward


@pytest.mark.slow
def test_both_forwards_compute_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "plain.json"
    plain_forward.main(["--mini", "--batch", "1", "3", "--repeats", "2", "--json", str(path)])
    records = json.loads(path.read_text())["records"]
    assert [record["batch"] for record in records] == [1, 3]
    assert all(record["largest_difference"] < 1e-5 for record in records)
    assert all(record["faster"]["low"] <= record["faster"]["median"] <= record["faster"]["high"] for record in records)
    assert "times as fast" in capsys.readouterr().out
