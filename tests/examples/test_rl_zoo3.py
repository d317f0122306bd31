"""The files of hyper-parameters for rl_zoo3, without it: what it does with them is done here."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import stable_baselines3
import yaml
from stable_baselines3.common.env_util import make_vec_env

import das_gym  # noqa: F401 - registers the environments

FOLDER = Path(__file__).parents[2] / "examples" / "rl_zoo3"
TABULAR = "DAS-METER-VQA-Tabular-v0"
ENV_KWARGS: dict[str, dict[str, Any]] = {"ppo": {"action": "scores"}, "dqn": {"action": "sequence"}}
CASES = [(path.stem, entry) for path in sorted(FOLDER.glob("*.yml")) for entry in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize(("algorithm", "entry"), CASES)
def test_agent_is_built_from_hyperparameters_and_learns(algorithm, entry):
    settings = copy.deepcopy(yaml.safe_load((FOLDER / f"{algorithm}.yml").read_text())[entry])
    env_id = TABULAR if entry == "default" else entry
    n_envs, n_timesteps = settings.pop("n_envs"), settings.pop("n_timesteps")  # all that is not the algorithm's
    env = make_vec_env(gymnasium.spec(env_id).make, n_envs, env_kwargs=ENV_KWARGS[algorithm])
    model = getattr(stable_baselines3, algorithm.upper())(env=env, seed=0, **settings)
    steps = settings.get("n_steps", 1) * n_envs
    assert n_timesteps >= 10 * steps
    model.learn(min(steps, 64))
    assert model.num_timesteps >= min(steps, 64)
    env.close()
