"""Every form of the environment renders, and Gymnasium's wrappers for that work on it."""

from __future__ import annotations

import pickle
from pathlib import Path

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

from das_gym.envs.rendering import RENDER_MODES
from das_gym.envs.wrappers import ScoresWrapper, SequenceWrapper

TABULAR = "DAS-METER-VQA-Tabular-v0"
LIVE = "DAS-METER-VQA-v0"
BUDGET = {"skip_num": 2}


@pytest.fixture(scope="module")
def kwargs(small_kwargs: dict[str, str], small_table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("rendering") / "table.npz"
    small_table.save(path)
    return {TABULAR: {**BUDGET, "table": str(path)}, LIVE: {**BUDGET, **small_kwargs, "reward_examples": 4}}


def check_frame(frame: str | np.ndarray, mode: str) -> None:
    if mode == "ansi":
        assert frame.startswith("stage 0: ")
        assert frame.count("\n") == 4  # three stages, and one line of words
    else:
        assert (frame.dtype, frame.shape[1:]) == (np.uint8, (960, 3))


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
@pytest.mark.parametrize("mode", RENDER_MODES)
@pytest.mark.parametrize("env_id", [TABULAR, LIVE])
def test_every_form_renders(kwargs: dict, env_id: str, mode: str, action: str):
    env = gymnasium.make(env_id, action=action, render_mode=mode, **kwargs[env_id])
    vector = gymnasium.make_vec(env_id, num_envs=2, action=action, render_mode=mode, **kwargs[env_id])
    for each in (env, vector):
        each.reset(seed=0)
        each.action_space.seed(0)
        first = each.render()
        each.step(each.action_space.sample())
        frames = [(first, each.render())] if each is env else zip(first, each.render(), strict=True)
        for before, after in frames:
            check_frame(before, mode)
            check_frame(after, mode)
            assert np.any(before != after)


@pytest.mark.parametrize("wrapper", [SequenceWrapper, ScoresWrapper])
@pytest.mark.parametrize("mode", RENDER_MODES)
def test_wrappers_render_what_is_chosen_so_far(kwargs: dict, wrapper: type, mode: str):
    env = wrapper(gymnasium.make(TABULAR, render_mode=mode, **kwargs[TABULAR]))
    same = gymnasium.make(TABULAR, action=env.mode.name, render_mode=mode, **kwargs[TABULAR])
    for each in (env, same):
        each.reset(seed=0)
        each.action_space.seed(3)
        each.step(each.action_space.sample())
    np.testing.assert_array_equal(env.render(), same.render())


def test_amid_a_sequence_it_says_so(kwargs: dict):
    env = gymnasium.make(TABULAR, action="sequence", render_mode="ansi", **kwargs[TABULAR])
    env.reset(seed=0)
    assert env.render().endswith("6 layers, none chosen yet\n")
    env.step(0)
    assert "skipped text.0: not scored, still choosing; reward 0.0000" in env.render()
    env.step(4)
    assert "skipped text.0, image.1: reward 0." in env.render()


def test_a_mask_off_the_budget_is_told(kwargs: dict):
    env = gymnasium.make(TABULAR, render_mode="ansi", **kwargs[TABULAR])
    env.reset(seed=0)
    env.step(np.ones(6, np.int8))
    assert "not scored, off the budget; reward -" in env.render()


def test_the_search_so_far_is_kept(kwargs: dict):
    env = gymnasium.make(TABULAR, render_mode="rgb_array", **kwargs[TABULAR])
    env.reset(seed=0)
    masks = [mask for mask in env.get_wrapper_attr("table").masks if mask.sum() == 2]
    rewards = []
    for mask in (*masks, np.ones(6, bool)):
        env.reset()
        rewards.append(env.step(mask.astype(np.int8))[1])
    running = np.maximum.accumulate(rewards[:-1])
    rises = [i for i in range(len(masks)) if i == 0 or running[i] > running[i - 1]]
    wanted = [(i + 1, rewards[i]) for i in rises]
    scorer = env.unwrapped.scorer
    assert scorer.improvements == wanted
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    np.testing.assert_array_equal(twin.render(), env.render())
    vector = gymnasium.make_vec(TABULAR, num_envs=len(masks), **kwargs[TABULAR])
    vector.reset(seed=0)
    vector.step(np.array(masks, np.int8))
    assert vector.template.scorer.improvements == wanted
    env.reset()
    assert scorer.improvements == wanted  # a search goes on over episodes
    env.reset(seed=1)
    assert scorer.improvements == []


def test_gymnasiums_checker_is_content(kwargs: dict):
    for mode in RENDER_MODES:
        check_env(gymnasium.make(TABULAR, render_mode=mode, disable_env_checker=False, **kwargs[TABULAR]).unwrapped)
    for env_id in (TABULAR, LIVE):
        assert registry[env_id].entry_point
        assert gymnasium.make(env_id, **kwargs[env_id]).metadata["render_modes"] == list(RENDER_MODES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of moviepy
@pytest.mark.filterwarnings("ignore:.*autoreset mode is same-step:UserWarning")  # Gymnasium's, of any such environment
def test_films(kwargs: dict, tmp_path: Path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install 'das_gym[video]'")
    env = RecordVideo(
        gymnasium.make(TABULAR, action="sequence", render_mode="rgb_array", **kwargs[TABULAR]), str(tmp_path / "one")
    )
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    env.close()
    assert {path.name for path in tmp_path.glob("*/*.mp4") if path.stat().st_size > 1000} == {"rl-video-episode-0.mp4"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of moviepy
@pytest.mark.filterwarnings("ignore:.*autoreset mode is same-step:UserWarning")  # Gymnasium's, of any such environment
def test_a_film_of_several(kwargs: dict, tmp_path: Path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install 'das_gym[video]'")
    if not hasattr(gymnasium.wrappers.vector, "RecordVideo"):
        pytest.skip("this version of Gymnasium films no vector environments")
    vector = gymnasium.make_vec(TABULAR, num_envs=3, action="sequence", render_mode="rgb_array", **kwargs[TABULAR])
    film = gymnasium.wrappers.vector.RecordVideo
    films = film(vector, str(tmp_path / "many"), episode_trigger=lambda episode: True, name_prefix="vector")
    films.reset(seed=0)
    for layer in (0, 1, 2, 3):
        films.step(np.full(3, layer))
    films.close()
    assert (tmp_path / "many" / "vector-episode-0.mp4").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:.*'human' rendering for an environment that doesn't natively:UserWarning")  # Gymnasium's
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pygame
def test_a_window(kwargs: dict, monkeypatch: pytest.MonkeyPatch):
    pygame = pytest.importorskip("pygame", reason="HumanRendering needs pygame: pip install 'das_gym[video]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make(TABULAR, render_mode="human", **kwargs[TABULAR])
    monkeypatch.setitem(env.metadata, "render_fps", 1000)
    env.reset(seed=0)
    env.step(np.array([1, 0, 0, 0, 1, 0], np.int8))
    assert pygame.display.get_surface().get_size()[0] == 960
    env.close()
