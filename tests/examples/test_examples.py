from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
QUICK = {
    "own_task": {"steps": 2},
    "policy_gradient": {"env_id": "DAS-METER-VQA-Tabular-v0", "num_updates": 3},
    "random_masks": {"steps": 3},
    "sb3_maskable": {"env_id": "DAS-METER-VQA-Tabular-v0", "total_timesteps": 128},
    "sb3_ppo": {"total_timesteps": 64, "reward_examples": 10},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path: Path):
    assert len(path.read_text().splitlines()) < 60
    result = runpy.run_path(str(path))["main"](**QUICK[path.stem])
    assert np.isfinite(result)
    assert -1 <= result <= 1
