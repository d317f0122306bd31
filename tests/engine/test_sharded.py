"""Masks on a local Ray cluster of two workers: the same numbers as alone, whatever becomes of a worker."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.agents import SearchConfig, search
from das_gym.agents.run_commands import table as ex

from das_gym.engine import sharded
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.scores import Scores
from das_gym.files import CACHE_VARIABLE
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, build_problem
from das_gym.tables.build import build_table
from das_gym.tables.table import SubnetTable

ray = pytest.importorskip("ray", reason="workers='ray' needs Ray: pip install 'das_gym[ray]'")

ENV_ID = "DAS-METER-VQA-v0"
MASKS = np.eye(6, dtype=bool)
LAPTOP = {"CPU": 2.0, "memory": 1e9}
SERVER = {"CPU": 16.0, "GPU": 8.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Room for two workers, as nice as other processes of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        quick = {"worker_niceness": 0}
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, _system_config=quick)
        yield
        ray.shutdown()


@pytest.fixture
def settings(small_kwargs) -> dict:
    return {**small_kwargs, "eval_batch_size": 4, "workers": "ray"}


@pytest.fixture
def unconnected(monkeypatch, settings) -> Problem:
    """A problem whose workers are never started, and which needs no cluster."""
    monkeypatch.setattr(sharded, "connect_to_ray", lambda: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": LAPTOP}])
    return build_problem(ProblemConfig(**settings))


@pytest.mark.slow
def test_workers_read_the_encoder_cache_of_a_model_with_linear_maps(unconnected, tmp_path, monkeypatch):
    """Its folder has the name of the model without the maps, which change no encoder output."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    linear = {"skip": "linear", "calibration_examples": 8, "encoder_cache": str(tmp_path / "encoders"), "workers": "ray"}
    problem = build_problem(ProblemConfig(model="VLM", task="answering", eval_batch_size=4, **linear))
    worker = problem.evaluator.recipe()()
    worker.losses(np.eye(12, dtype=bool)[:1], problem.splits.reward[:2])
    assert len(list((tmp_path / "encoders").iterdir())) == 1
    assert worker.counter.twin.skippable_layer(0).skip_adapter.up.weight.shape == (80, 80)


def saved(table: SubnetTable, path: Path) -> bytes:
    table.save(path)
    return path.read_bytes()


@pytest.mark.long
def test_workers_give_the_numbers_of_one_process(cluster, settings, small_kwargs, small_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compute = {"eval_batch_size": 4, "workers": "ray"}
    ex.run({**small_kwargs, "problem": compute, "reward_examples": 10, "test_examples": 6}, ["meter_vqa"])
    assert Path("runs/1/table.npz").read_bytes() == saved(small_table, tmp_path / "alone.npz")
    problem = build_problem(ProblemConfig(**settings))
    alone = build_problem(ProblemConfig(**small_kwargs, eval_batch_size=4)).evaluator
    found, wanted = (
        each.evaluate(MASKS, problem.splits.reward[:10], divergences=True) for each in (problem.evaluator, alone)
    )
    for name in ("losses", "metrics", "divergences"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert len(problem.evaluator._workers) == 2
    with pytest.raises(ValueError, match=r"^got no examples to score masks on"):
        problem.evaluator._share(MASKS, (), True, True)  # errors of workers are those of one process
    problem.evaluator.close()
    assert not problem.evaluator._workers


def dying(make: Callable[[], Evaluator], log: Path) -> Evaluator:
    """An evaluator that writes down what it scores, and ends its process over the last masks of the second batch."""
    evaluator = make()
    score = evaluator.evaluate_each

    def evaluate_each(masks: np.ndarray, examples: tuple, block: tuple[int, int] | None) -> Scores:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {examples[0].key} {masks.sum()}\n")
        seen = {line.split()[1] for line in log.read_text().splitlines()}
        if len(seen) == 2 and masks[-1].all() and not log.with_suffix(".died").exists():
            log.with_suffix(".died").touch()
            os._exit(1)
        return score(masks, examples, block=block)

    evaluator.evaluate_each = evaluate_each
    return evaluator


@pytest.mark.long
def test_killed_worker_costs_only_its_shard(cluster, settings, small_table, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    problem, log = build_problem(ProblemConfig(**settings)), tmp_path / "calls.txt"
    recipe = problem.evaluator.recipe
    problem.evaluator.recipe = lambda: partial(dying, recipe(), log)
    try:
        table, spent = build_table(problem, ENV_ID, 10, 6)
    finally:
        problem.evaluator.close()
    assert log.with_suffix(".died").exists()
    assert saved(table, tmp_path / "shared.npz") == saved(small_table, tmp_path / "alone.npz")
    calls = [tuple(line.split()) for line in log.read_text().splitlines()]
    assert len(calls) == 2 * 5 + 1  # two shards of each of five batches, and one of them again
    assert len({call[1:] for call in calls}) == 2 * 5
    assert len({pid for pid, *_ in calls}) == 3  # the other worker continued
    alone = 5 * (2 + 2 * 4 + 2 * 16)  # layer runs
    assert alone < spent.layer_runs < 1.5 * alone  # what shards have in common, each runs


def test_shards_are_neighbours_in_the_tree(unconnected):
    masks = np.array([[b >> i & 1 for i in range(6)] for b in range(64)], dtype=bool)
    rows = sharded.tree_order(masks, unconnected.vlp.stages)
    assert sorted(rows.tolist()) == list(range(64))
    first = masks[rows[:16]][:, list(unconnected.vlp.stages[0])]
    assert len(np.unique(first, axis=0)) == 1  # a quarter of the masks, one way through stage 0


def test_workers_get_adapters_as_they_are_now(unconnected, small_kwargs, monkeypatch):
    alone = build_problem(ProblemConfig(**small_kwargs, eval_batch_size=4))
    examples, ended = alone.splits.reward[:4], []
    monkeypatch.setattr(unconnected.evaluator, "close", lambda: ended.append(True))
    for problem in (alone, unconnected):
        with torch.no_grad():
            problem.vlp.skippable_layer(0).skip_adapter.up.bias.add_(1.0)
    assert unconnected.evaluator.recipe().args[2].device == "cpu"  # of the main process; `cuda:1` is `cuda` in a worker
    there = unconnected.evaluator.recipe()()
    assert type(there) is Evaluator
    np.testing.assert_array_equal(there.losses(MASKS, examples), alone.evaluator.losses(MASKS, examples))
    for _ in range(2):
        unconnected.evaluator.losses(MASKS[:0], examples)
        assert ended == [True]  # workers of before are not asked any more


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task"), [("ViLT", "retrieval"), ("VLM", "answering")])
def test_worker_evaluator_equals_the_problems(monkeypatch, model, task):
    """With a supernet and without one; what is sent goes through pickles."""
    monkeypatch.setattr(sharded, "connect_to_ray", lambda: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": LAPTOP}])
    problem = build_problem(ProblemConfig(model=model, task=task, workers="ray"))
    sent = ray.cloudpickle.dumps((problem.evaluator.recipe(), problem.splits.reward[:2]))
    make, examples = ray.cloudpickle.loads(sent)
    there, masks = make(), np.eye(len(problem.layer_names), dtype=bool)[:4]
    assert there.batch_size == problem.evaluator.batch_size
    monkeypatch.setattr(sharded.ShardedEvaluator, "_score", Evaluator._score)  # in this process
    here = problem.evaluator.losses(masks, problem.splits.reward[:2])
    np.testing.assert_array_equal(there.losses(masks, examples), here)


def test_worker_warnings_and_spending_are_forwarded(small_kwargs):
    problem = build_problem(ProblemConfig(**small_kwargs, eval_batch_size=4))
    with torch.no_grad():
        problem.vlp.skippable_layer(3).skip_adapter.up.bias.fill_(float("nan"))
    worker = sharded.Worker()
    worker._evaluator = problem.evaluator
    for _ in range(2):
        _, spent, [(category, text)] = worker.score([], MASKS, problem.splits.reward[:4], True, True, None)
        assert (category, spent.masks) == (RuntimeWarning, len(MASKS))
        assert "skips layers [3]" in text


def test_records_of_searches_can_be_replayed_without_a_cluster(unconnected, settings, monkeypatch):
    monkeypatch.setattr(sharded.ShardedEvaluator, "_score", Evaluator._score)
    own = {**settings, "reward_examples": 4}
    result = search(SearchConfig(ENV_ID, agent="random", skip_num=2, evaluations=2, masks_per_turn=2, env_kwargs=own))
    assert result.env_kwargs["reward_examples"] == 4
    assert "workers" not in result.env_kwargs


@pytest.mark.parametrize(("needed", "room"), [({"CPU": 1, "GPU": 1}, 8), ({"TPU": 1}, 0)])
def test_number_of_workers_fits_the_nodes(monkeypatch, needed, room):
    gone = {"Alive": False, "Resources": SERVER}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in (LAPTOP, SERVER))])
    with nullcontext() if room else pytest.raises(ValueError, match="`workers=ray`"):
        assert sharded.count_workers(needed) == room
