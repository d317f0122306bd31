"""Rendering of every form of the environments, alone and under Gymnasium's wrappers."""

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

from das_gym.drawing.architecture import RENDER_MODES, WIDTH

TABULAR, LIVE = "DAS-METER-VQA-Tabular-v0", "DAS-METER-VQA-v0"


@pytest.fixture(scope="module")
def kwargs(small_kwargs, small_table_file) -> dict[str, dict]:
    live = {"skip_num": 2, **small_kwargs, "reward_examples": 4}
    return {TABULAR: {"skip_num": 2, "table": small_table_file}, LIVE: live}


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


@pytest.mark.parametrize("env_id", [TABULAR, LIVE])
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


def test_vector_env_shows_episodes_as_they_ended(kwargs):
    both = gymnasium.make_vec(TABULAR, num_envs=3, render_mode="ansi", **kwargs[TABULAR])
    alone = gymnasium.make(TABULAR, render_mode="ansi", **kwargs[TABULAR])
    both.action_space.seed(0)
    both.reset(seed=0)
    assert all("none chosen yet" in frame for frame in both.render())
    actions = both.action_space.sample()
    both.step(actions)
    for action, frame in zip(actions, both.render(), strict=True):
        alone.reset()
        alone.step(action)
        assert frame == alone.render()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of moviepy
def test_record_video_records_an_episode(kwargs, tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install 'das_gym[video]'")
    env = RecordVideo(
        gymnasium.make(TABULAR, action="sequence", render_mode="rgb_array", **kwargs[TABULAR]), str(tmp_path / "one")
    )
    env.reset(seed=0)
    ended = False
    while not ended:
        ended = env.step(env.action_space.sample())[2]
    env.close()
    assert (tmp_path / "one" / "rl-video-episode-0.mp4").stat().st_size > 1000
