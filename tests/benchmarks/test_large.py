from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import large


def test_it_plays_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(large.EVALUATIONS, 24, 12)
    path = tmp_path / "large.json"
    settings = ["--layers", "24", "--seeds", "2", "--kind", "groups", "--json", str(path)]
    large.main([*settings, "--agents", "bayes", "random", "optuna"])
    found = json.loads(path.read_text())["layers"]["24"]
    assert found.keys() == {"bayes", "random", "optuna"}
    assert all(0 <= each["regret"] < 1.5 for runs in found.values() for each in runs)
    assert "24 layers, 8 skipped, 12 evaluations" in capsys.readouterr().out
