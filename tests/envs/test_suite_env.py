from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_sb3

import das_gym  # noqa: F401  (registers the environments)
from das_gym.envs.suite_episodes import SuiteEpisodes
from das_gym.tables.suite import Suite, SuiteTable, problems_of
from tests.made_up_suite import made_up_table

ACTIONS = ("mask", "sequence", "scores")


@pytest.fixture(scope="module")
def suite(made_up_suite: Path) -> str:
    return str(made_up_suite)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
def test_both_checkers_pass(id: str, action: str, flat: bool, suite: str):
    if "Search" in id and action == "sequence":
        pytest.skip("an action of a search is a whole mask")
    env = gymnasium.make(id, suite=suite, action=action, flat=flat, budgets=("macs", "latency")).unwrapped
    check_env(env, skip_render_check=True)
    check_sb3(env)


def test_a_mask_earns_what_the_table_says(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite).unwrapped
    for name in env.problem_names[::5]:
        problem = env.suite.problems[env.problem_names.index(name)]
        _, info = env.reset(options={"problem": name})
        assert info["optimum"] == problem.optimum
        n = problem.table.n_layers
        best = problem.table.masks[np.where(problem.budget.is_kept_by(problem.table.masks), problem.rewards, -1).argmax()]
        action = np.ones(16, np.int8)  # units beyond the model's are not there, whatever the action says
        action[:n] = best
        _, reward, ended, _, info = env.step(action)
        assert (reward, ended) == (pytest.approx(1), True)
        assert info["regret"] == pytest.approx(0)
        assert info["raw_reward"] == pytest.approx(problem.optimum)
        env.reset(options={"problem": name})
        _, reward, _, _, info = env.step(np.zeros(16, np.int8))
        assert not info["feasible"]
        assert -2 <= reward < -1
        assert info["raw_reward"] == -np.inf


def test_a_problem_of_latency_is_bound_by_what_units_take(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite, action="sequence", budgets="latency").unwrapped
    plain = gymnasium.make("DAS-Suite-v0", suite=suite, action="sequence").unwrapped
    assert env.observation_space == plain.observation_space
    rng = np.random.default_rng(0)
    for number, problem in enumerate(env.suite.problems):
        n, cost = problem.table.n_layers, problem.table.costs["latency_saved"]
        observed, _ = env.reset(options={"problem": number})
        np.testing.assert_allclose(observed["savings"][:n], cost.savings / cost.full, rtol=1e-6)
        np.testing.assert_allclose(observed["budget"], [0, problem.budget.saved], rtol=1e-6)
        assert not env.action_masks()[n - 1 :].any()  # the last unit is quicker than what stands in its place
        ended = False
        while not ended:
            observed, reward, ended, _, info = env.step(rng.choice(np.flatnonzero(env.action_masks())))
            mask = env.last_mask[None, :n]
            assert observed["saved"][0] == pytest.approx((cost.unskipped - cost.amounts(mask)[0]) / cost.full)
            assert info["latency_saved"] == cost.saved(mask)[0]
            assert info["macs_saved"] == problem.table.macs_saved[problem.table.index(mask[0])]
            assert ended == info["feasible"] == (info["latency_saved"] >= problem.budget.saved)
            assert reward == (max(problem.scaled(problem.rewards[problem.table.index(mask)])[0], -1) if ended else 0)


def test_rewards_of_latency_are_scaled_as_all_others(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite, budgets="latency").unwrapped
    problem = env.suite.problems[0]
    masks, n = problem.table.masks, problem.table.n_layers
    best = np.where(problem.budget.is_kept_by(masks), problem.rewards, -1).argmax()
    for mask, earned in ((masks[best], 1.0), (masks[0], -1 - problem.budget.saved - 1 / 40)):  # unskipped: 1 of 40 ms more
        env.reset(options={"problem": problem.name})
        assert env.step(np.pad(mask, (0, 16 - n)).astype(np.int8))[1] == pytest.approx(earned)


@pytest.mark.parametrize("budget", ["skip_num", "saved"])
def test_a_sequence_shows_what_it_has_done_and_earns_at_its_end(budget: str):
    table = made_up_table(7, 0)
    assert table.macs_saved[0] < 0  # adapters cost something
    suite = Suite(problems_of(SuiteTable("t.npz", "train", "METER", "vqa", "t"), table))
    which = next(n for n, each in enumerate(suite.problems) if getattr(each.budget, budget) is not None)
    problem, episodes = suite.problems[which], SuiteEpisodes(suite, "sequence", False, 1)
    episodes.begin(np.zeros(1, int), np.array([which]))
    mask, ended = np.zeros(7, bool), False
    for unit in np.flatnonzero(problem.budget.useful_layers):
        assert not ended
        np.testing.assert_array_equal(episodes.action_masks()[0, :7], problem.budget.useful_layers & ~mask)
        mask[unit] = True
        (reward,), (ended,), info = episodes.take(np.array([unit]), (1,))
        observed, row = episodes.observe(), int(table.index(mask))
        np.testing.assert_array_equal(observed["skipped"][0, :7], mask)
        assert observed["saved"][0, 0] == pytest.approx(table.macs_saved[row] - table.macs_saved[0])
        assert ended == problem.budget.is_kept_by(mask[None])[0]
        assert reward == (pytest.approx(problem.scaled(problem.rewards[row])) if ended else 0)
        assert info["raw_reward"][0] == (problem.rewards[row] if ended else -np.inf)
        assert info["loss"][0] == (table.values("loss")[row] if ended else np.inf)
        if ended:
            break
    assert mask.sum() > 1
    episodes.masks[:] = True
    assert episodes.action_masks().any()


def test_random_valid_actions_earn_nothing_in_the_mean(suite: str):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=512, suite=suite, action="sequence", reward="neg_loss").unwrapped
    env.reset(seed=0, options={"problem": 0})
    problem, rng, raw = env.suite.problems[0], np.random.default_rng(0), []
    for _ in range(problem.budget.skip_num):
        choices = env.action_masks()
        actions = np.where(choices, rng.random(choices.shape), -1).argmax(axis=1)
        _, _, ended, _, info = env.step(actions)
    assert ended.all()
    raw = info["final_info"]["raw_reward"]
    assert raw.mean() == pytest.approx(problem.random_mean, abs=4 * raw.std() / np.sqrt(512))


@pytest.mark.parametrize("budgets", [("count", "macs"), "latency"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("action", ACTIONS)
def test_side_by_side_is_as_alone(action: str, flat: bool, budgets: str | tuple[str, ...], suite: str):
    both = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite, action=action, flat=flat, budgets=budgets)
    alone = gymnasium.make("DAS-Suite-v0", suite=suite, action=action, flat=flat, budgets=budgets)
    problems = [1, 4, 9]
    both.reset(seed=0, options={"problem": problems})
    both.action_space.seed(0)
    actions = both.action_space.sample()
    observed, rewards, ended, _, info = both.step(actions)
    for row, problem in enumerate(problems):
        alone.reset(options={"problem": problem})
        own = alone.step(actions[row])
        assert own[1:3] == (rewards[row], ended[row])
        last = info["final_obs"][row] if ended[row] else observed[row] if flat else {k: v[row] for k, v in observed.items()}
        parts = [(own[0], last)] if flat else [(own[0][key], last[key]) for key in own[0]]
        for mine, theirs in parts:
            np.testing.assert_array_equal(mine, theirs)
        told = info["final_info"] if ended[row] else info
        for name, value in own[4].items():
            np.testing.assert_array_equal(value, told[name][row])


def test_every_episode_draws_a_problem_and_the_seed_decides(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite)
    first = [env.reset(seed=7)[1]["problem"], *(env.reset()[1]["problem"] for _ in range(9))]
    assert len(set(first)) > 3
    assert first == [env.reset(seed=7)[1]["problem"], *(env.reset()[1]["problem"] for _ in range(9))]
    few, other = (gymnasium.make("DAS-Suite-v0", suite=suite, problems=4, problems_seed=n).unwrapped for n in (0, 1))
    assert len(few.problem_names) == 4
    assert set(few.problem_names) != set(other.problem_names)
    with pytest.raises(ValueError, match=r"problems=0: this split has \d+"):
        gymnasium.make("DAS-Suite-v0", suite=suite, problems=0)


def test_the_page_shows_what_the_bundled_suite_draws():
    page = (Path(__file__).parents[2] / "docs" / "suite.md").read_text()
    env = gymnasium.make("DAS-Suite-v0", split="train", action="sequence").unwrapped
    _, info = env.reset(seed=0)
    assert f'[info["problem"]])  # {env.problem_names[info["problem"]]}\n' in page


def test_mistakes_are_told(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(16, np.int8))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="give"):
        env.step(np.zeros(7, np.int8))
    for problem in ("nothing", 1.5, True, [3]):
        with pytest.raises(ValueError, match=r"this split has problems 0\.\."):
            env.reset(options={"problem": problem})
    side_by_side = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite)
    with pytest.raises(ValueError, match="options name 2 problems; name 1, or 3"):
        side_by_side.reset(options={"problem": [0, 1]})
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        side_by_side.reset(seed=[0, 1])
    for each in (env, side_by_side):
        with pytest.raises(ValueError, match="unknown option of reset 'Problem'; did you mean 'problem'"):
            each.reset(options={"Problem": 3})
        with pytest.raises(ValueError, match="options='bad': give a dictionary"):
            each.reset(options="bad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown split"):
        gymnasium.make("DAS-Suite-v0", suite=suite, split="training")
    for number in (1.5, "a", 0):
        with pytest.raises(ValueError, match=f"num_envs={number!r}: a vector environment has at least one"):
            gymnasium.make_vec("DAS-Suite-v0", num_envs=number, suite=suite)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_episode_steps=2: episodes end with their budget here"):
        gymnasium.make_vec("DAS-Suite-v0", num_envs=2, suite=suite, max_episode_steps=2)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint64, np.int8, bool])
def test_scores_of_every_type_are_ordered_alike(dtype: type, suite: str):
    """Numbers without a sign cannot be negated, and the least of a signed byte is its own negative."""
    env = gymnasium.make("DAS-Suite-v0", suite=suite, action="scores").unwrapped
    scores = np.array([1, 0, 1, 0, 0, 0, 1] + [0] * 9)
    if dtype is np.int8:
        scores[3] = -128
    env.reset(options={"problem": 0})
    env.step(scores.astype(np.float64))
    wanted = env.last_mask
    env.reset(options={"problem": 0})
    env.step(scores.astype(dtype))
    np.testing.assert_array_equal(env.last_mask, wanted)
    env.reset(options={"problem": 0})
    with pytest.raises(ValueError, match="holds no numbers"):
        env.step(np.array(["a"] * 16))


def test_side_by_side_problems_are_named_by_number_or_name_and_told(suite: str):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite).unwrapped
    name = env.suite.problems[4].name
    env.reset(seed=0, options={"problem": [2, name, np.int64(1)]})
    assert env.problems.tolist() == [2, 4, 1]
    *_, info = env.step(env.action_space.sample())
    assert info["problem"].tolist() == [2, 4, 1]
    assert env.problems.tolist() != [2, 4, 1]


def test_an_ended_episode_tells_its_own_action_mask(suite: str):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite, action="sequence").unwrapped
    env.reset(seed=0)
    ended = np.zeros(3, bool)
    while not ended.any():
        masks = env.last_masks
        actions = env.action_masks().argmax(axis=1)
        _, _, ended, _, info = env.step(actions)
    row = int(ended.argmax())
    skipped = masks[row] | (np.arange(16) == actions[row])
    assert not (info["final_info"]["action_mask"][row] & skipped).any()


def test_copies_share_the_suite(suite: str):
    env = gymnasium.make("DAS-Suite-v0", suite=suite)
    assert copy.deepcopy(env).unwrapped.suite is env.unwrapped.suite


@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
@pytest.mark.parametrize("problems", [None, 5])
def test_a_pickle_goes_on_and_does_not_hold_the_suite(id: str, problems: int | None):
    """The bundled one took 42 MB."""
    env = gymnasium.make(id, action="scores", problems=problems)
    env.reset(seed=0)
    pickled = pickle.dumps(env)
    assert len(pickled) < 50_000
    twin = pickle.loads(pickled)
    assert twin.unwrapped.problem_names == env.unwrapped.problem_names
    for _ in range(3):
        action = env.action_space.sample()
        assert data_equivalence(env.step(action), twin.step(action))
        assert data_equivalence(env.reset(), twin.reset())


@pytest.mark.parametrize("action", ACTIONS)
def test_reset_with_the_next_step(action: str, suite: str):
    """As Gymnasium's own vector environment of single ones does it, but for the problems that are drawn."""
    made: dict[str, Any] = {"num_envs": 3, "suite": suite, "action": action, "flat": True}
    env = gymnasium.make_vec("DAS-Suite-v0", autoreset_mode="NextStep", **made)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    same = gymnasium.make_vec("DAS-Suite-v0", vectorization_mode="sync", **made)
    env.reset(seed=0, options={"problem": [1, 4, 9]})
    for each, problem in zip(same.envs, (1, 4, 9), strict=True):
        each.unwrapped.np_random = SimpleNamespace(integers=lambda count, problem=problem: problem)
    same.reset()
    env.unwrapped._drawn = lambda count: env.unwrapped.problems[env.unwrapped._waiting]  # the same ones again
    env.action_space.seed(0)
    for _ in range(20):
        actions = env.action_space.sample()
        mine, theirs = env.step(actions), same.step(actions)
        for one, other in zip(mine[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        for key, values in theirs[4].items():
            np.testing.assert_array_equal(mine[4][key], values, err_msg=key)


def test_gymnasiums_vector_wrappers_normalise_observations(suite: str):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite, flat=True, action="scores", autoreset_mode="NextStep")
    wrapped = gymnasium.wrappers.vector.NormalizeObservation(env)
    wrapped.reset(seed=0)
    for _ in range(6):
        wrapped.step(wrapped.action_space.sample())
    assert np.abs(wrapped.obs_rms.mean).max() > 0.1


@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"splitt": "train"}, "unexpected keyword argument 'splitt'; did you mean 'split'"),
        ({"skip_num": 3}, "unexpected keyword argument 'skip_num'"),
        ({"problems": 1.5}, "problems=1.5: this split has"),
        ({"problems": True}, "problems=True: this split has"),
        ({"problems": 3, "problems_seed": None}, "problems_seed=None is not allowed"),
        ({"statistics": []}, "give one or more of stream, depth"),
        ({"budgets": "latencies"}, "unknown kind of budget 'latencies'; did you mean 'latency'"),
        ({"budgets": []}, "give one or more of count, macs, latency"),
        ({"problems_seed": -1}, "problems_seed=-1 is not allowed"),
        ({"render_mode": "svg"}, "render_mode='svg' is not allowed; use 'ansi'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")  # Gymnasium's own word on it
def test_wrong_arguments_are_told(id: str, arguments: dict[str, Any], says: str, suite: str):
    with pytest.raises(ValueError, match=says):
        gymnasium.make(id, suite=suite, **arguments)


def test_what_one_form_alone_takes_is_told(suite: str):
    with pytest.raises(ValueError, match="unexpected keyword argument 'evaluation'; did you mean 'evaluations'"):
        gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluation=3)
    for evaluations in (1.5, 0, 10**9):  # of a billion, what is observed would take all memory
        with pytest.raises(ValueError, match=f"evaluations={evaluations}: give a whole number, 1 to 65536"):
            gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluations=evaluations)
    with pytest.raises(ValueError, match="unknown autoreset_mode 'Disabled'; known: SameStep, NextStep"):
        gymnasium.make_vec("DAS-Suite-v0", num_envs=2, suite=suite, autoreset_mode="Disabled")
    assert gymnasium.make_vec("DAS-Suite-v0", num_envs=2, suite=suite, autoreset_mode="SameStep").num_envs == 2


def test_a_search_earns_the_gain_of_its_best(suite: str):
    env = gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluations=5).unwrapped
    env.reset(seed=1)
    env.action_space.seed(1)
    total, best, ended = 0.0, 0.0, False
    for place in range(5):
        assert not ended
        observed, reward, ended, _, info = env.step(env.action_space.sample())
        scaled = float(observed["rewards"][place])
        assert reward == pytest.approx(max(scaled - best, 0), abs=1e-6)
        best, total = max(best, scaled), total + reward
        assert observed["masks"][16 * place : 16 * place + 16].sum() == info["n_skipped"]
    assert ended
    assert total == pytest.approx(info["best"], abs=1e-6)
    with pytest.raises(ValueError, match="whole mask"):
        gymnasium.make("DAS-Suite-Search-v0", suite=suite, action="sequence")


def test_a_search_earns_what_is_better_than_before_and_forgets_it(suite: str):
    env = gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluations=4, action="mask").unwrapped
    env.reset(options={"problem": 0})
    problem = env.suite.problems[0]
    kept = np.flatnonzero(problem.budget.is_kept_by(problem.table.masks))
    order = kept[np.argsort(problem.rewards[kept])]
    rows = order[[-3, -5, -1, 0]]
    first, second, _, _ = problem.scaled(problem.rewards[rows])
    assert 1 > first > second > 0
    masks = np.pad(problem.table.masks[rows], ((0, 0), (0, 16 - problem.table.n_layers))).astype(np.int8)
    assert [env.step(mask)[1] for mask in masks] == pytest.approx([first, 0, 1 - first, 0])
    observed, info = env.reset(options={"problem": 0})
    assert not any(observed[name].any() for name in ("masks", "rewards", "scored", "best"))
    assert (info["best"], info["evaluations"]) == (0, 0)


@pytest.mark.slow
def test_a_recurrent_policy_runs_on_a_search(suite: str):
    from sb3_contrib import RecurrentPPO

    env = gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluations=4, flat=True)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0)
    assert model.learn(16).num_timesteps == 16


def test_the_search_steps_side_by_side_by_gymnasiums_own_vector_form(suite: str):
    settings = {"split": "valid", "suite": suite, "num_envs": 2}
    modes = {"autoreset_mode": AutoresetMode.SAME_STEP}
    several = gymnasium.make_vec("DAS-Suite-Search-v0", vectorization_mode="sync", vector_kwargs=modes, **settings)
    several.reset(seed=0)
    assert several.step(several.action_space.sample())[1].shape == (2,)
    with pytest.raises(ValueError, match="autoreset_mode is a setting of vector environments"):
        gymnasium.make_vec("DAS-Suite-Search-v0", autoreset_mode="NextStep", **settings)
