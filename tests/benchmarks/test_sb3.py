from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sb3


@pytest.mark.slow
def test_a_short_search_on_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "sb3.json"
    sb3.main(["a2c", "--where", "table", "--evaluations", "8", "--json", str(path)])
    record = json.loads(path.read_text())["records"][0]
    assert (record["where"], record["algorithm"], record["evaluations"]) == ("table", "a2c", 8)
    assert record["seconds"] > 0.5 < record["processor_seconds"]
    assert "table a2c" in capsys.readouterr().out
