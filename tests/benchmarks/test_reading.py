from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import reading


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_both_ways_are_measured_with_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torchvision")
    path = tmp_path / "reading.json"
    small = ["--pictures", "8", "--batch-size", "2", "--image-size", "64"]
    reading.main(["--workers", "0", "1", *small, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["way"], row["workers"]) for row in rows] == [(w, n) for w in ("first pass", "augmented") for n in (0, 1)]
    assert all(row["steps_a_second"] > 0 for row in rows)
    assert "augmented, 1 processes read: " in capsys.readouterr().out
