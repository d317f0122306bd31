"""Many processes on one runs folder and one cache, and environments in separate processes."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

import das_gym
from das_gym.files import read_json
from tests.faults.sixteen import PROCESSES

pytestmark = pytest.mark.slow  # all of them take seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where 16 processes were at work."""
    place = tmp_path_factory.mktemp("sixteen")
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.sixteen", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_sixteen_runs_have_ids_of_their_own(folder, monkeypatch):
    monkeypatch.setenv("DAS_GYM_CACHE", str(folder / "cache"))
    runs = [folder / "runs" / str(number) for number in range(1, PROCESSES + 1)]
    assert sorted(path.name for path in (folder / "runs").glob("[0-9]*")) == sorted(run.name for run in runs)
    assert sorted(read_json(run / "config.json")["number"] for run in runs) == list(range(PROCESSES))
    assert all(read_json(run / "run.json")["status"] == "COMPLETED" for run in runs)
    assert all(read_json(run / "run.json")["result"] == read_json(run / "config.json")["number"] for run in runs)


def test_generation_runs_once_and_files_stay_complete(folder):
    assert len((folder / "cache" / "generations.txt").read_text().split()) == 1
    assert len(set(read_json(folder / "all.json")["by"])) == 1
    assert not list(folder.rglob("*.part"))


def tabular() -> gymnasium.Env:
    """Made in a separate process, which may have imported nothing yet."""
    return gymnasium.make(f"{das_gym.__name__}:DAS-METER-VQA-Tabular-v0", skip_num=4)


ACTIONS = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]], dtype=np.int8)


@pytest.mark.parametrize(("context", "count"), [("fork", 2), ("spawn", 1)])
def test_environments_in_processes_of_their_own_give_what_they_give_here(context, count):
    here = tabular()
    first, _ = here.reset(seed=0)
    envs = AsyncVectorEnv([tabular] * count, context=context, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        observations, _ = envs.reset(seed=0)
        rewards = envs.step(ACTIONS[:count])[1]
    finally:
        envs.close()
    assert np.array_equal(observations[0], first)
    for action, reward in zip(ACTIONS, rewards, strict=False):
        here.reset()
        assert here.step(action)[1] == reward


FORKED = """
import os, signal, torch
import das_gym.engine.evaluator
torch.set_num_threads(2)
a = torch.ones(512, 512)
assert (a @ a).sum() == 512**3
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if (a @ a).exp().isinf().all() and torch.get_num_threads() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0, "it hangs, or has threads that it has not"
"""


def test_fork_does_not_wait_for_threads_of_its_parent():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
