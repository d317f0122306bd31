"""Rendering of every form of the environments, alone and under Gymnasium's wrappers."""

from typing import Any

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

from das_gym.drawing.architecture import RENDER_MODES, WIDTH, Architecture

TABULAR, LIVE = "DAS-METER-VQA-Tabular-v0", "DAS-METER-VQA-v0"
SUITE, SEARCH = "DAS-Suite-v0", "DAS-Suite-Search-v0"
IDS = (TABULAR, LIVE, SUITE, SEARCH)


@pytest.fixture(scope="module")
def kwargs(small_kwargs, small_table_file, made_up_suite) -> dict[str, dict]:
    suite = {"suite": str(made_up_suite)}
    live = {"skip_num": 2, **small_kwargs, "reward_examples": 4}
    return {TABULAR: {"skip_num": 2, "table": small_table_file}, LIVE: live, SUITE: suite, SEARCH: suite}


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
@pytest.mark.parametrize("mode", RENDER_MODES)
@pytest.mark.parametrize("env_id", [TABULAR, LIVE])
def test_all_forms_render(kwargs, env_id, mode, action):
    env = gymnasium.make(env_id, action=action, render_mode=mode, **kwargs[env_id])
    vector = gymnasium.make_vec(env_id, num_envs=2, action=action, render_mode=mode, **kwargs[env_id])
    for each in (env, vector):
        each.reset(seed=0)
        each.action_space.seed(0)
        first = each.render()
        each.step(each.action_space.sample())
        frames = [(first, each.render())] if each is env else zip(first, each.render(), strict=True)
        for before, after in frames:
            assert np.any(before != after)
            for frame in (before, after):
                if mode == "ansi":
                    assert frame.startswith("stage 0: ")
                    assert frame.count("\n") == 4  # three stages, and one line of words
                else:
                    assert (frame.dtype, frame.shape[1:]) == (np.uint8, (WIDTH, 3))


@pytest.mark.parametrize("env_id", IDS)
def test_checker_accepts_every_mode(kwargs, env_id):
    assert gymnasium.make(env_id, **kwargs[env_id]).render() is None
    for mode in RENDER_MODES:
        check_env(gymnasium.make(env_id, render_mode=mode, disable_env_checker=False, **kwargs[env_id]).unwrapped)


def test_text_gives_the_reason_of_unscored_masks(kwargs):
    env = gymnasium.make(TABULAR, action="sequence", render_mode="ansi", **kwargs[TABULAR])
    env.reset(seed=0)
    assert env.render().endswith("6 units, none chosen yet\n")
    env.step(0)
    assert "skipped text.0: not scored, still choosing; reward 0.0000" in env.render()
    env.step(4)
    assert "skipped text.0, image.1: reward 0." in env.render()
    env = gymnasium.make(TABULAR, render_mode="ansi", **kwargs[TABULAR])
    env.reset(seed=0)
    env.step(np.ones(6, np.int8))
    assert "not scored, off the budget; reward -" in env.render()


def test_suite_shows_stages_and_name_of_every_problem(kwargs):
    env: Any = gymnasium.make(SUITE, render_mode="ansi", **kwargs[SUITE])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    env.action_space.seed(0)
    for number, problem in enumerate(env.unwrapped.suite.problems):
        env.reset(options={"problem": number})
        before = env.render().splitlines()
        assert len(before) == len(Architecture.from_table(problem.table).stages) + 1
        assert before[-1] == f"{problem.name}: {problem.table.n_layers} units, none chosen yet"
        reward, info = env.step(env.action_space.sample())[1::3]
        assert env.render().count("SKIP") == info["n_skipped"]
        assert f"reward {reward:.4f}" in env.render()


def test_vector_env_shows_episodes_as_they_ended(kwargs):
    both = gymnasium.make_vec(SUITE, num_envs=3, render_mode="ansi", **kwargs[SUITE])
    alone = gymnasium.make(SUITE, render_mode="ansi", **kwargs[SUITE])
    both.action_space.seed(0)
    both.reset(seed=0, options={"problem": [1, 4, 9]})
    assert all("none chosen yet" in frame for frame in both.render())
    actions = both.action_space.sample()
    both.step(actions)
    for number, action, frame in zip((1, 4, 9), actions, both.render(), strict=True):
        alone.reset(options={"problem": number})
        alone.step(action)
        assert frame == alone.render()


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [TABULAR, SUITE])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of moviepy
def test_record_video_records_an_episode(kwargs, env_id, tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install 'das_gym[video]'")
    env = RecordVideo(
        gymnasium.make(env_id, action="sequence", render_mode="rgb_array", **kwargs[env_id]), str(tmp_path / "one")
    )
    env.reset(seed=0)
    ended = False
    while not ended:
        ended = env.step(env.action_space.sample())[2]
    env.close()
    assert (tmp_path / "one" / "rl-video-episode-0.mp4").stat().st_size > 1000
