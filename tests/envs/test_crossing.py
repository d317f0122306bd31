"""Every pair of settings of an environment, in the few rows that have them all: the same invariants hold for each."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.scoring import INFO_KEYS, REWARD_BATCHES
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone
from das_gym.problem.problem import Problem, load_problem
from das_gym.problem.rewards import REWARDS
from das_gym.registration import find_environment
from das_gym.tables.build import build_table
from tests.crossing import Row, crossed
from tests.models.transformers import tiny
from tests.tasks.answering.making import chat, draw, entry, write

EXAMPLES = 7

OF_ENVIRONMENTS: dict[str, tuple[Any, ...]] = {
    "action": ("mask", "sequence", "scores"),
    "budget": ({"skip_num": 1}, {"skip_num": 0}, {"skip_num": None}, {"macs_saved": 0.02}, {"memory_saved": 0.05}),
    "reward": tuple(name for name in REWARDS if name != "neg_loss"),  # the others are read from the same losses
    "reward_batches": REWARD_BATCHES,
    "reward_examples": (1, EXAMPLES),
    "macs_price": (0.0, 0.5),
    "statistics": (("depth",), ("fisher", "leave_one_out")),
}


def own_settings(row: Row) -> dict[str, Any]:
    """Return the settings of the environment from a row."""
    names = ("action", "reward", "reward_batches", "reward_examples", "macs_price", "statistics")
    return {**{name: row[name] for name in names}, **row["budget"]}


def trajectory(env: Any, actions: list[Any], seed: int | None = 1) -> list[str]:
    """All that an environment gives, episode after episode."""
    observation, info = env.reset(seed=seed)
    found = [repr((observation, info))]
    for action in actions:
        observation, reward, ended, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert not truncated
        wanted = {*INFO_KEYS, *(("action_mask", "invalid_action") if env.unwrapped.mode.name == "sequence" else ())}
        cost = env.unwrapped.budget.cost
        assert set(info) == wanted | ({cost.setting} if cost is not None else set())
        found.append(repr((observation, reward, ended, info)))
        if ended:
            found.append(repr(env.reset()))
    return found


def check_alone(env: Any) -> list[Any]:
    """An environment repeats itself, continues after unpickling, and is usable when closed; actions for more."""
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(3)]
    first = trajectory(env, actions)
    assert trajectory(env, actions) == first
    env.reset(seed=1)
    env.step(actions[0])
    state = json.loads(json.dumps(env.unwrapped.get_state()))
    other = pickle.loads(pickle.dumps(env))
    again = trajectory(other, actions, seed=None)
    env.unwrapped.set_state(state)
    assert trajectory(env, actions, seed=None) == again
    check_env(env.unwrapped, skip_render_check=True)
    env.close()
    assert trajectory(env, actions) == first
    return actions


def check_side_by_side(id: str, settings: dict[str, Any], tolerance: float) -> None:
    """Each of the copies in a vector is the environment alone, on the examples of the step."""
    many = gymnasium.make_vec(id, num_envs=2, **settings)
    ones: list[Any] = [gymnasium.make(id, **settings).unwrapped for _ in range(2)]
    many.reset(seed=1)
    for one in ones:
        one.reset(seed=1)
    many.action_space.seed(5)
    for _ in range(4):
        before = many.unwrapped.get_state()  # type: ignore[attr-defined]
        actions = many.action_space.sample()
        observations, rewards, ended, _, info = many.step(actions)
        for index, one in enumerate(ones):
            one.scorer.position, one.np_random.bit_generator.state = before["position"], before["rng"]
            observation, reward, over, _, expected = one.step(actions[index])
            assert rewards[index] == pytest.approx(reward, rel=tolerance, abs=tolerance)
            assert ended[index] == over
            final = info["final_info"] if over else info
            for key in expected.keys() - {"evaluations"}:
                np.testing.assert_allclose(final[key][index], expected[key], rtol=tolerance, atol=tolerance)
            if over:
                np.testing.assert_array_equal(info["final_obs"][index], observation)
                observation, _ = one.reset()
            np.testing.assert_array_equal(observations[index], observation)
    many.close()


def check_table(id: str, table: Path, live: Any, settings: dict[str, Any], actions: list[Any], tolerance: float) -> None:
    """Looked up it is what the model scores, where that scores the examples of the table."""
    scorer = live.unwrapped.scorer
    costs = {} if scorer.budget.cost is None else {"costs": {scorer.budget.cost.setting: scorer.budget.cost.as_dict()}}
    given = {name: value for name, value in settings.items() if name not in ProblemConfig.__dataclass_fields__}
    if settings["reward"] == "neg_kl":  # kept as means alone
        given = {name: value for name, value in given.items() if name not in ("reward_examples", "reward_batches")}
    tabular = gymnasium.make(id, table=str(table), **given, **costs)
    check_alone(tabular)
    if settings["reward_examples"] != EXAMPLES or settings["reward_batches"] != "fixed":
        return
    observations = [env.reset(seed=1)[0] for env in (live, tabular)]
    np.testing.assert_allclose(*observations, rtol=1e-3, atol=max(1e-4, tolerance))
    for action in actions:
        one, other = live.step(action), tabular.step(action)
        assert other[1] == pytest.approx(one[1], rel=tolerance, abs=tolerance)
        assert other[4].keys() == one[4].keys()
        if one[2]:
            live.reset()
            tabular.reset()


@torch.no_grad()
def check_engine(problem: Problem, scorer: EngineScorer, alone: bool, tolerance: float) -> None:
    """Masks together, on examples together, score what plain forwards of each give; `alone`: of each example, too."""
    rng = np.random.default_rng(0)
    masks = rng.random((4, scorer.n_layers)) < 0.5
    masks[0], examples, task = False, scorer.fixed_examples, problem.task
    found = problem.evaluator.evaluate(masks, examples, divergences=True)
    size = 1 if alone else problem.evaluator.batch_size
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
    for row, mask in enumerate(masks):
        losses, metrics = [], []
        for chunk in chunks:
            pooled = problem.vlp.make_forward(task.processor, task.pairs(chunk))(mask)
            logits, targets = problem.head(task.group_features(pooled)), task.targets(chunk)
            losses += task.losses(logits, targets).tolist()
            metrics += task.metrics(logits, targets).tolist()
        assert found.losses[row] == pytest.approx(np.mean(losses), rel=tolerance, abs=tolerance)
        assert found.metrics[row] == pytest.approx(np.mean(metrics), abs=1e-6)


Checked = Callable[[Row, dict[str, Any]], None]


@pytest.fixture
def checked(tmp_path) -> Checked:
    """Checks a row on a problem."""
    tables: dict[str, Path] = {}

    def check(row: Row, problem: dict[str, Any]) -> None:
        entry, settings = find_environment(problem["model"], problem["task"]), {**problem, **own_settings(row)}
        prompts, loaded = entry.task == "answering", load_problem(ProblemConfig(**problem))
        tolerance = 1e-9 if row.get("dtype") == "float64" and not loaded.vlp.tunable else 2e-4
        env: Any = gymnasium.make(entry.id, **settings)
        actions = check_alone(env)
        check_engine(loaded, env.unwrapped.scorer, prompts, tolerance)
        check_side_by_side(entry.id, settings, tolerance)
        key = json.dumps(problem)
        if key not in tables and len(loaded.layer_names) <= 6:
            tables[key] = tmp_path / f"{len(tables)}.npz"
            build_table(loaded, entry.id, EXAMPLES, 2, each=True)[0].save(tables[key])
        if key in tables:
            check_table(entry.tabular_id, tables[key], env, settings, actions, max(tolerance, 2e-3))  # float16 losses

    return check


@pytest.mark.slow
def test_env_invariants_of_pair_models(checked, small_kwargs):
    for row in crossed(OF_ENVIRONMENTS):
        checked(row, {"model": "METER", "task": "vqa", **small_kwargs, "eval_batch_size": 4})


QUESTIONS = ("how many circles are there", "2", "what colour is it", "red green", "is the square blue", "true")

OF_PROMPTS: dict[str, tuple[Any, ...]] = {
    "type": ("llama", "qwen2_vl"),
    "units": ("layers", "sublayers", "adapters"),
    "vision": (None, True),
    "dtype": ("float32", "float64"),
    "eval_batch_size": (1, 3),
}


def makes_sense(row: Row) -> bool:
    """Layers of a tower have no adapters, and a model that reads text alone has no tower."""
    return row["vision"] is None or (row["units"] != "adapters" and row["type"] != "llama")


@pytest.fixture
def prompts(tmp_path) -> Callable[[Row], dict[str, Any]]:
    """The problem of a row: a tiny model, and data in which questions share their image."""
    for start, part in ((0, "train"), (4, "test")):
        numbers = range(start, start + 4)
        write(tmp_path / "seen" / f"{part}.json", [entry(n, f"<image>\n{QUESTIONS[0]}", *QUESTIONS[1:]) for n in numbers])
        draw(*(tmp_path / "seen" / "images" / f"{n}.png" for n in numbers))
        talks = [{"id": str(n), "conversations": chat(f"{n}: {QUESTIONS[0]}", *QUESTIONS[1:])} for n in numbers]
        write(tmp_path / "read" / f"{part}.json", talks)

    def problem(row: Row) -> dict[str, Any]:
        folder = tmp_path / f"{row['type']}"
        if not folder.exists():
            tiny.save(row["type"], folder)
        data = tmp_path / ("read" if row["type"] in tiny.TEXT_ALONE else "seen")
        given = {"model": "VLM", "task": "answering", "checkpoint": str(folder), "data_root": str(data)}
        given |= {name: row[name] for name in ("dtype", "vision", "eval_batch_size") if row[name] is not None}
        if row["units"] != "adapters":
            return {**given, "units": row["units"]}
        path = tmp_path / f"{row['type']}_{row['dtype']}.safetensors"
        if not path.exists():
            backbone = load_backbone(ProblemConfig(**given))
            torch.manual_seed(1)
            for parameter in backbone.vlp.tunable_state().values():
                torch.nn.init.normal_(parameter, std=0.1)
            Adaptation.from_model(
                backbone.vlp, backbone.vlp.language_head(), task="answering", answers=(), base=backbone.base
            ).save(path)
        return {**given, "supernet": str(path)}

    return problem


@pytest.mark.slow
def test_env_invariants_of_prompt_models(checked, prompts):
    rows = crossed(OF_PROMPTS, makes_sense)
    for number, (row, own) in enumerate(zip(rows, crossed(OF_ENVIRONMENTS, seed=1), strict=False)):
        try:
            checked({**own, **row}, prompts(row))
        except Exception as error:
            raise AssertionError(f"row {number}: {row}, {own}") from error
