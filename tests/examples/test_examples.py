import runpy
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from das_gym.agents import AGENTS

from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import ASSETS
from tests.models.test_own_model import save_bridge_tower
from tests.registered import as_before

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
QUICK: dict[str, dict] = {
    "dqn": {"total_timesteps": 96, "learning_starts": 32, "target_update_every": 32, "log_every": 32},
    "masked_ppo": {"total_timesteps": 128, "num_envs": 4, "log_every": 1},
    "own_agent": {"evaluations": 30, "seeds": 2},
    "own_reward": {"evaluations": 30},
    "own_statistic": {"reward_examples": 10},
    "own_model": {"checkpoint": "bridge_tower", "steps": 2, "reward_examples": 8},
    "own_task": {"steps": 2, "data_root": "shapes"},
    "outside_optimizers": {"evaluations": 12},
    "policy_gradient": {"env_id": "DAS-METER-VQA-Tabular-v0", "num_updates": 3},
    "random_masks": {"steps": 3, "reward_examples": 10},
    "sb3_maskable": {"env_id": "DAS-METER-VQA-Tabular-v0", "total_timesteps": 128},
    "sb3_ppo": {"env_id": "DAS-METER-VQA-Tabular-v0"},
}

WHOLE_ALGORITHMS = ("dqn", "masked_ppo")
"""Examples that are longer than others: an algorithm and all that it needs in one file."""

CASES = [(path, QUICK[path.stem]) for path in EXAMPLES]
CASES += [(path, {**QUICK["policy_gradient"], "macs_saved": 0.3}) for path in EXAMPLES if path.stem == "policy_gradient"]


@pytest.fixture
def registries() -> Iterator[None]:
    """Undo the registrations of an example after it."""
    with as_before(AGENTS, REWARDS, STATISTICS):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(("path", "arguments"), CASES, ids=lambda value: getattr(value, "stem", ""))
def test_runs(path, arguments, tmp_path, monkeypatch, shapes_folder):
    assert len([line for line in path.read_text().splitlines() if line]) < (130 if path.stem in WHOLE_ALGORITHMS else 90)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(shapes_folder)
    if path.stem == "own_model":
        save_bridge_tower(tmp_path / "bridge_tower", ASSETS / "meter_mini")
    result = runpy.run_path(str(path))["main"](**arguments)
    assert np.isfinite(result)
    assert -1 <= result <= 1
    if path.stem == "sb3_ppo":
        assert result >= gymnasium.spec(arguments["env_id"]).reward_threshold
