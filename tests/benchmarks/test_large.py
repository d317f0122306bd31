from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import large
from das_gym.problem.mask_space import every_mask


def test_the_best_mask_of_a_landscape_is_the_best_of_all():
    landscape = large.Landscape(12, 3)
    assert landscape.best == pytest.approx(landscape.losses(every_mask(12, 4)).min())
    assert landscape.regret(landscape.best) == 0
    assert landscape.regret(landscape.random) == 1


def test_it_plays_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(large.EVALUATIONS, 24, 12)
    path = tmp_path / "large.json"
    large.main(["--layers", "24", "--agents", "bayes", "random", "optuna", "--seeds", "2", "--json", str(path)])
    found = json.loads(path.read_text())["layers"]["24"]
    assert found.keys() == {"bayes", "random", "optuna"}
    assert all(0 <= each["regret"] < 1.5 for runs in found.values() for each in runs)
    assert "24 layers, 8 skipped, 12 evaluations" in capsys.readouterr().out
