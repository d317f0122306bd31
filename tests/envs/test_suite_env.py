import pickle

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

import das_gym  # noqa: F401  (registers the environments)


@pytest.fixture(scope="module")
def suite(made_up_suite) -> str:
    return str(made_up_suite)


def test_reward_agrees_with_the_table(suite):
    env = gymnasium.make("DAS-Suite-v0", suite=suite).unwrapped
    for name in env.problem_names[::5]:
        problem = env.suite.problems[env.problem_names.index(name)]
        _, info = env.reset(options={"problem": name})
        assert info["optimum"] == problem.optimum
        n = problem.table.n_layers
        best = problem.table.masks[np.where(problem.budget.is_feasible(problem.table.masks), problem.rewards, -1).argmax()]
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


def test_latency_budget_limits_latency(suite):
    env = gymnasium.make("DAS-Suite-v0", suite=suite, action="sequence", budgets="latency").unwrapped
    plain = gymnasium.make("DAS-Suite-v0", suite=suite, action="sequence").unwrapped
    assert env.observation_space == plain.observation_space
    rng = np.random.default_rng(0)
    for number, problem in enumerate(env.suite.problems):
        n, cost = problem.table.n_layers, problem.table.costs["latency_saved"]
        observed, _ = env.reset(options={"problem": number})
        np.testing.assert_allclose(observed["savings"][:n], cost.savings / cost.full, rtol=1e-6)
        np.testing.assert_allclose(observed["budget"], [0, problem.budget.saved], rtol=1e-6)
        assert not env.action_masks()[n - 1 :].any()  # the last unit is faster than its adapter
        ended = False
        while not ended:
            observed, reward, ended, _, info = env.step(rng.choice(np.flatnonzero(env.action_masks())))
            mask = env.last_mask[None]
            assert observed["saved"][0] == pytest.approx((cost.unskipped - cost.amounts(mask)[0]) / cost.full)
            assert info["latency_saved"] == cost.saved(mask)[0]
            assert info["macs_saved"] == problem.table.macs_saved[problem.table.index(mask[0])]
            assert ended == info["feasible"] == (info["latency_saved"] >= problem.budget.saved)
            assert reward == (max(problem.scaled(problem.rewards[problem.table.index(mask)])[0], -1) if ended else 0)


@pytest.mark.parametrize(("flat", "budgets"), [(True, "latency"), (False, ("count", "macs"))])
@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_vector_env_agrees_with_single_envs(action, flat, budgets, suite):
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


@pytest.mark.parametrize("options", [{"problem": "nothing"}, {"problem": 1.5}, {"problem": [3, 4]}, {"Problem": 3}, "bad"])
def test_reset_rejects_unknown_options(options, suite):
    for env in (gymnasium.make("DAS-Suite-v0", suite=suite), gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite)):
        with pytest.raises(ValueError, match=r"`problem`|option"):
            env.reset(options=options)


def test_vector_env_rejects_wrong_numbers(suite):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite)
    with pytest.raises(ValueError, match=r"`seed`.*3"):
        env.reset(seed=[0, 1])
    with pytest.raises(ValueError, match="num_envs"):
        gymnasium.make_vec("DAS-Suite-v0", num_envs=1.5, suite=suite)  # type: ignore[arg-type]


def test_vector_env_takes_problems_by_number_or_name(suite):
    env = gymnasium.make_vec("DAS-Suite-v0", num_envs=3, suite=suite).unwrapped
    name = env.suite.problems[4].name
    env.reset(seed=0, options={"problem": [2, name, np.int64(1)]})
    assert env.problems.tolist() == [2, 4, 1]
    *_, info = env.step(env.action_space.sample())
    assert info["problem"].tolist() == [2, 4, 1]
    assert env.problems.tolist() != [2, 4, 1]


@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
@pytest.mark.parametrize("problems", [None, 5])
def test_pickle_continues_without_the_arrays_of_the_suite(id, problems):
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


@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"skip_num": 3},
        {"split": "training"},
        {"problems": 0},
        {"problems": 1.5},
        {"problems_seed": -1},
        {"statistics": "depht"},
        {"budgets": []},
        {"evaluations": 1.5},
        {"evaluations": 10**9},
    ],
)
def test_wrong_arguments_are_rejected(id, arguments, suite):
    (name,) = arguments
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        gymnasium.make(id, suite=suite, **arguments)


def test_search_earns_the_gain_of_its_best(suite):
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


def test_search_forgets_masks_at_reset(suite):
    env = gymnasium.make("DAS-Suite-Search-v0", suite=suite, evaluations=4, action="mask").unwrapped
    env.reset(options={"problem": 0})
    problem = env.suite.problems[0]
    kept = np.flatnonzero(problem.budget.is_feasible(problem.table.masks))
    order = kept[np.argsort(problem.rewards[kept])]
    rows = order[[-3, -5, -1, 0]]
    first, second, _, _ = problem.scaled(problem.rewards[rows])
    assert 1 > first > second > 0
    masks = np.pad(problem.table.masks[rows], ((0, 0), (0, 16 - problem.table.n_layers))).astype(np.int8)
    assert [env.step(mask)[1] for mask in masks] == pytest.approx([first, 0, 1 - first, 0])
    observed, info = env.reset(options={"problem": 0})
    assert not any(observed[name].any() for name in ("masks", "rewards", "scored", "best"))
    assert (info["best"], info["evaluations"]) == (0, 0)


@pytest.mark.parametrize("id", ["DAS-Suite-v0", "DAS-Suite-Search-v0"])
def test_feature_names_name_every_entry(id, suite):
    settings = {"evaluations": 3} if "Search" in id else {"action": "sequence"}
    env = gymnasium.make(id, suite=suite, statistics=["parameters_share", "macs_share"], **settings)
    names = env.unwrapped.feature_names
    flat = gymnasium.make(id, suite=suite, statistics=["parameters_share", "macs_share"], flat=True, **settings)
    assert len(set(names)) == len(names) == flat.observation_space.shape[0]
    observation, _ = env.reset(seed=1)
    together = np.concatenate(list(observation.values()))
    np.testing.assert_array_equal(together, flat.reset(seed=1)[0])
    assert together[names.index("unit.3/macs_share")] == observation["statistics"][2 * 3 + 1]
    assert together[names.index("budget/cost")] == observation["budget"][1]
    vector = gymnasium.make_vec(id, num_envs=2, suite=suite, **settings) if "Search" not in id else None
    assert vector is None or "unit.0/units" in vector.unwrapped.feature_names
