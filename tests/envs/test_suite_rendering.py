"""The environments of a suite render: whatever the problem, in pictures of one size."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import WIDTH
from das_gym.envs.rendering import RENDER_MODES

IDS = ("DAS-Suite-v0", "DAS-Suite-Search-v0")


@pytest.fixture(scope="module")
def suite(made_up_suite: Path) -> str:
    return str(made_up_suite)


def make(id: str, suite: str, mode: str | None = "ansi", **more: Any) -> Any:
    return gymnasium.make(id, suite=suite, render_mode=mode, **more)


@pytest.mark.parametrize("id", IDS)
def test_the_checker_is_content(id: str, suite: str):
    assert make(id, suite, None).render() is None
    for mode in RENDER_MODES:
        check_env(make(id, suite, mode, disable_env_checker=False).unwrapped)


def test_every_problem_has_its_stages_and_its_name(suite: str):
    env = make("DAS-Suite-v0", suite)
    env.action_space.seed(0)
    for number, problem in enumerate(env.unwrapped.suite.problems):
        env.reset(options={"problem": number})
        before = env.render().splitlines()
        assert len(before) == len(Architecture.of_table(problem.table).stages) + 1
        assert before[-1] == f"{problem.name}: {problem.table.n_layers} layers, none chosen yet"
        reward, info = env.step(env.action_space.sample())[1::3]
        after = env.render()
        assert after.count("SKIP") == info["n_skipped"]
        assert f"reward {reward:.4f}" in after


def test_amid_a_sequence_it_says_so(suite: str):
    env = make("DAS-Suite-v0", suite, action="sequence")
    _, info = env.reset(seed=0)
    (unit, *_) = np.flatnonzero(info["action_mask"])
    _, _, ended, _, _ = env.step(unit)
    assert ("not scored, still choosing" in env.render()) is not ended


@pytest.mark.parametrize("id", IDS)
def test_pictures_have_one_size(id: str, suite: str):
    env = make(id, suite, "rgb_array")
    env.action_space.seed(0)
    frames = []
    for number in (0, 3, 7):
        env.reset(options={"problem": number})
        frames.append(env.render())
        env.step(env.action_space.sample())
        frames.append(env.render())
    assert {(frame.shape, frame.dtype) for frame in frames} == {((frames[0].shape[0], WIDTH, 3), np.dtype(np.uint8))}
    assert all(np.any(a != b) for a, b in itertools.pairwise(frames))
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    np.testing.assert_array_equal(twin.render(), frames[-1])


def test_a_search_shows_how_its_best_rose(suite: str):
    env = make("DAS-Suite-Search-v0", suite, "rgb_array", evaluations=6)
    env.reset(seed=0)
    env.action_space.seed(3)
    best, rises = -1.0, []
    for at in range(6):
        observed = env.step(env.action_space.sample())[0]
        if (reward := float(observed["rewards"][at])) > best:
            best = reward
            rises.append((at + 1, reward))
    assert env.unwrapped._kept.improvements == rises
    assert env.unwrapped._kept.last.info["evaluations"] == 6


def test_side_by_side_is_as_alone(suite: str):
    both = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite, render_mode="ansi")
    alone = make("DAS-Suite-v0", suite)
    both.action_space.seed(0)
    both.reset(seed=0, options={"problem": [1, 4, 9]})
    assert all("none chosen yet" in frame for frame in both.render())
    actions = both.action_space.sample()
    both.step(actions)  # all end, and the next problems are begun; what ended is shown
    for number, action, frame in zip((1, 4, 9), actions, both.render(), strict=True):
        alone.reset(options={"problem": number})
        alone.step(action)
        assert frame == alone.render()
    assert gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite).render() is None


def test_nothing_is_shown_before_a_problem_is_drawn(suite: str):
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        make("DAS-Suite-v0", suite).render()


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of moviepy
def test_films(id: str, suite: str, tmp_path: Path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install 'das_gym[video]'")
    more = {"evaluations": 2} if "Search" in id else {}
    env = RecordVideo(make(id, suite, "rgb_array", **more), str(tmp_path / "films"), episode_trigger=lambda episode: True)
    for _ in range(2):
        env.reset()
        ended = False
        while not ended:
            ended = env.step(env.action_space.sample())[2]
    env.close()
    assert len([path for path in tmp_path.glob("films/*.mp4") if path.stat().st_size > 1000]) == 2


@pytest.mark.filterwarnings("ignore:.*'human' rendering for an environment that doesn't natively:UserWarning")  # Gymnasium's
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pygame
def test_a_window_takes_one_problem_after_another(suite: str, monkeypatch: pytest.MonkeyPatch):
    pygame = pytest.importorskip("pygame", reason="HumanRendering needs pygame: pip install 'das_gym[video]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make("DAS-Suite-v0", suite, "human")
    monkeypatch.setitem(env.metadata, "render_fps", 1000)
    for number in (0, 3, 7):
        env.reset(options={"problem": number})
        env.step(env.action_space.sample())
    assert pygame.display.get_surface().get_size()[0] == WIDTH
    env.close()
