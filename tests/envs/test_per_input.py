import dataclasses
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from das_gym.engine.lockstep import LockstepRunner
from das_gym.envs.per_input import MAX_LOSS, PerInputEnv, PerInputVectorEnv
from das_gym.envs.sb3_vec_env import make_sb3_vec_env
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import build_problem

METER = "DAS-METER-VQA-PerInput-v0"
VLM = "DAS-VLM-Answering-PerInput-v0"


def run_episode(env, masks) -> tuple:
    """Return rewards and the final info of an episode under (num_envs, n_layers) masks."""
    for units in env.problem.vlp.stages:
        _, rewards, terminated, _, info = env.step(masks[:, list(units)].astype(np.int8))
    assert terminated.all()
    return rewards, info["final_info"]


def make(small_problem, num_envs: int = 6, **settings) -> PerInputVectorEnv:
    env = gymnasium.make_vec("DAS-v0", num_envs=num_envs, problem=small_problem, per_input=True, **settings)
    assert type(env) is PerInputVectorEnv
    return env


def random_masks(rows: int, n_layers: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, n_layers)) < 0.5


def note_rows(seen: list[int], module, given, output) -> None:
    """Append the number of rows that a module reads: a hook."""
    seen.append(len(given[0]))


@pytest.mark.parametrize("action", ["mask", "discrete"])
@pytest.mark.parametrize("id", [METER, VLM])
def test_checkers_accept_it(id, action, small_kwargs, tiny_llava):
    env = gymnasium.make(id, action=action, **(small_kwargs if id == METER else tiny_llava)).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)
    for _ in range(3):
        observation, _ = env.reset()
        assert observation in env.observation_space
    assert len(env.feature_names) == len(observation)


def test_one_mask_for_all_gives_the_scores_of_the_engine_bit_for_bit(small_problem):
    env = make(small_problem, split="test", order="cycle", price=0.25)
    env.reset(seed=0)
    mask = np.array([1, 0, 0, 1, 1, 0], dtype=bool)
    rewards, info = run_episode(env, np.tile(mask, (6, 1)))
    assert info["example"].tolist() == list(range(6))
    scores = small_problem.evaluator.evaluate_each(mask[None], small_problem.splits.test[:6])
    np.testing.assert_array_equal(info["loss"], scores.losses[0])
    np.testing.assert_array_equal(info["metric"], scores.metrics[0])
    share = small_problem.costs.macs(mask) / small_problem.costs.macs_full
    np.testing.assert_allclose(rewards, -(scores.losses[0] + 0.25 * share), rtol=1e-12)
    np.testing.assert_allclose(info["macs_share"], share, rtol=1e-12)


@pytest.mark.parametrize("id", [METER, "DAS-ViLT-NLVR2-PerInput-v0", VLM])
def test_other_masks_for_each_give_the_scores_of_the_engine(id, small_kwargs, tiny_llava):
    given = {METER: small_kwargs, VLM: tiny_llava}.get(id, {})
    env = gymnasium.make_vec(id, num_envs=5, split="reward", **given)
    env.reset(seed=3)
    problem = env.problem
    masks = random_masks(5, len(problem.layer_names))
    rewards, info = run_episode(env, masks)
    np.testing.assert_array_equal(info["mask"], masks)
    for mask, place, loss, metric, reward in zip(masks, info["example"], info["loss"], info["metric"], rewards, strict=True):
        scores = problem.evaluator.evaluate_each(mask[None], [problem.splits.reward[place]])
        assert loss == pytest.approx(scores.losses[0, 0], rel=1e-5)
        assert metric == scores.metrics[0, 0]
        assert reward == pytest.approx(-loss - problem.costs.macs(mask) / problem.costs.macs_full, rel=1e-9)


def test_vision_units_come_first(tiny_llava):
    env = gymnasium.make(VLM, vision=True, **tiny_llava).unwrapped
    problem = env.problem
    observation, info = env.reset(seed=0)
    mask = random_masks(1, len(problem.layer_names))[0]
    for units in problem.vlp.stages:
        assert observation in env.observation_space
        observation, _, terminated, _, info = env.step(mask[list(units)].astype(int))
    assert terminated
    scores = problem.evaluator.evaluate_each(mask[None], [problem.splits.train[info["example"]]])
    assert info["loss"] == pytest.approx(scores.losses[0, 0], rel=1e-5)


def test_single_environment_agrees_with_the_vector(small_problem):
    single = PerInputEnv(problem=small_problem, order="cycle")
    vector = make(small_problem, 3, order="cycle")
    start, _ = vector.reset(seed=0)
    masks = random_masks(3, 6)
    rewards, info = run_episode(vector, masks)
    for row in range(3):
        observation, at_start = single.reset(seed=0 if row == 0 else None)
        assert (at_start["example"], at_start["loss"], at_start["group"]) == (row, np.inf, info["group"][row])
        np.testing.assert_allclose(observation, start[row], atol=1e-5)
        for units in small_problem.vlp.stages:
            _, reward, _, _, last = single.step(masks[row, list(units)].astype(int))
        assert reward == pytest.approx(rewards[row], rel=1e-6)
        assert last["loss"] == pytest.approx(info["loss"][row], rel=1e-6)
        assert type(last["loss"]) is float


def test_each_layer_runs_once_on_the_rows_that_keep_it(small_problem):
    env = make(small_problem, 4)  # as many as a batch of the evaluator
    env.reset(seed=0)
    masks = random_masks(4, 6, seed=1)
    rows: dict[tuple[int, bool], list[int]] = {}
    hooks = []
    for index in range(6):
        unit = small_problem.vlp.skippable_layer(index)
        for skipped in (False, True):
            seen = rows.setdefault((index, skipped), [])
            hooks.append(unit.module_for(skipped).register_forward_hook(partial(note_rows, seen)))
    run_episode(env, masks)
    for hook in hooks:
        hook.remove()
    for (index, skipped), seen in rows.items():
        count = int((masks[:, index] == skipped).sum())
        assert seen == ([count] if count else [])


def test_observation_is_what_enters_the_stage(small_problem):
    env = make(small_problem, 1, order="cycle", split="reward")
    first, _ = env.reset(seed=0)
    vlp = small_problem.vlp
    pairs = small_problem.task.pairs(small_problem.splits.reward[:1])
    with torch.inference_mode():
        state = vlp.embed(small_problem.evaluator.encoder_cache(pairs))
        after = vlp.advance(state, 0, [True, False, False, True, False, False])
    second = env.step(np.array([[1, 1]]))[0]
    for observation, seen, stage in ((first[0], state, 0), (second[0], after, 1)):
        parts = [part for name in ("text", "image") for part in (seen.hidden[name][0].mean(0), seen.hidden[name][0, 0])]
        scaled = [(part - part.mean()) / part.std(correction=0) for part in parts]
        size = 4 * len(parts[0])
        np.testing.assert_allclose(observation[:size], torch.cat(scaled).numpy(), atol=1e-3)
        assert observation[size : size + 3].tolist() == [float(stage == i) for i in range(3)]
    costs = small_problem.costs
    kept = (costs.layer_macs + costs.parallel_macs)[[1, 2, 4, 5]].sum()
    share = (costs.macs([1, 0, 0, 1, 0, 0]) - kept) / costs.macs_full
    assert second[0, -1] == pytest.approx(share, rel=1e-6)


def test_decoder_shows_its_prompt_and_not_the_answer(tiny_llava):
    env = PerInputEnv(model="VLM", task="answering", **tiny_llava)
    problem = env.problem
    example = problem.splits.train[0]
    other = dataclasses.replace(example, answer="something else")
    assert other.answer != example.answer
    seen = []
    for one in (example, other):
        runner = LockstepRunner(problem.evaluator)
        runner.start([one])
        for stage in range(len(problem.vlp.stages) - 1):
            runner.advance(np.arange(len(problem.layer_names))[None] % 2 == 1)
            seen.append(runner.features()["joint"])
            assert runner.stage == stage + 1
    half = len(seen) // 2
    for one, two in zip(seen[:half], seen[half:], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_discrete_actions_are_bits_of_the_stage(small_problem):
    env = PerInputEnv(problem=small_problem, action="discrete")
    env.reset(seed=0)
    for number in (1, 2, 3):
        info = env.step(number)[4]
    assert info["mask"].astype(int).tolist() == [1, 0, 1, 0, 1, 1]  # text 0-2, image 0-2


def test_price_rises_until_enough_is_saved(small_problem):
    env = make(small_problem, 4, price=0.5, macs_saved=0.2, price_step=0.1)
    env.reset(seed=0)
    none = np.zeros((4, 6), dtype=bool)
    _, info = run_episode(env, none)
    assert info["price"].tolist() == [0.5] * 4
    expected = 0.5 + 0.1 * 4 * (small_problem.costs.macs(none[0]) / small_problem.costs.macs_full - 0.8)
    assert env.price == pytest.approx(expected)
    for _ in range(20):
        run_episode(env, ~none)
    assert env.price == 0
    env.reset(seed=0)
    assert env.price == 0.5


def test_every_example_of_the_split_comes_once_before_any_comes_again(small_problem):
    for split in ("train", "test"):
        size = len(getattr(small_problem.splits, split))
        for order in ("shuffle", "cycle"):
            env = make(small_problem, 1, split=split, order=order)
            places = [env.reset(seed=1 if number == 0 else None)[1]["example"][0] for number in range(size)]
            assert sorted(places) == list(range(size))
            assert (places == sorted(places)) == (order == "cycle")
            again, _ = env.reset(seed=1)[1]["example"], env.reset(seed=1)
            assert again[0] == places[0]


def test_broken_loss_is_the_largest(small_kwargs):
    problem = build_problem(ProblemConfig(**small_kwargs))
    with torch.no_grad():
        next(problem.head.parameters()).fill_(torch.nan)
    env = PerInputEnv(problem=problem, price=0.0)
    env.reset(seed=0)
    for _ in range(3):
        _, reward, _, _, info = env.step([0, 0])
    assert (reward, info["loss"], info["metric"]) == (-MAX_LOSS, np.inf, 0.0)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_it_renders(small_problem, mode):
    env = PerInputEnv(problem=small_problem, render_mode=mode)
    env.reset(seed=0)
    assert len(env.render())
    env.step([1, 0])
    assert len(env.render())


@pytest.mark.parametrize(("algorithm", "action"), [(PPO, "mask"), (DQN, "discrete")])
def test_algorithms_train(small_kwargs, algorithm, action):
    envs = make_sb3_vec_env(METER, n_envs=4, seed=0, action=action, **small_kwargs)
    settings = {"n_steps": 3, "batch_size": 12} if algorithm is PPO else {"learning_starts": 4, "batch_size": 4}
    model = algorithm("MlpPolicy", envs, seed=0, gamma=1.0, **settings).learn(48)
    assert model.num_timesteps == 48
    assert all(episode["l"] == 3 and episode["r"] < 0 for episode in model.ep_info_buffer)


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"action": "sequence"}, ValueError, "action"),
        ({"split": "val"}, ValueError, "split"),
        ({"order": "random"}, ValueError, "order"),
        ({"price": -1}, ValueError, "`price`"),
        ({"price_step": float("nan")}, ValueError, "`price_step`"),
        ({"macs_saved": 0.99}, ValueError, "`macs_saved`"),
        ({"skip_num": 4}, TypeError, "'skip_num'"),
    ],
)
def test_wrong_settings_are_named(small_problem, settings, error, name):
    with pytest.raises(error, match=name):
        PerInputEnv(problem=small_problem, **settings)


def test_wrong_actions_and_missing_resets_raise(small_problem):
    env = PerInputEnv(problem=small_problem)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([0, 0])
    env.reset(seed=0)
    for action in ([0, 2], [0], 1, [0.5, 1.0]):
        with pytest.raises(ValueError, match="`action`"):
            env.step(action)
    with pytest.raises(ValueError, match="`options`"):
        env.reset(options={"example": 3})
    discrete = PerInputEnv(problem=small_problem, action="discrete")
    discrete.reset(seed=0)
    with pytest.raises(ValueError, match="`action`"):
        discrete.step(4)


def test_live_environment_is_a_skip_env_by_default(small_problem):
    env = gymnasium.make("DAS-v0", problem=small_problem, skip_num=2, reward_examples=4).unwrapped
    assert env.skip_num == 2
    assert type(gymnasium.make("DAS-v0", problem=small_problem, per_input=True).unwrapped) is PerInputEnv
    vector = gymnasium.make_vec("DAS-v0", num_envs=2, problem=small_problem, skip_num=2, reward_examples=4)
    assert vector.skip_num == 2
