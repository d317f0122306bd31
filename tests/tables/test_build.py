import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bundled import check_table
from das_gym.envs.tabular_env import TabularEnv
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import build_problem
from das_gym.problem.statistics import STATISTICS
from das_gym.tables.build import build_table, hash_tensors, problem_hashes, table_examples, with_statistics
from das_gym.tables.table import SubnetTable

ENV_ID = "DAS-METER-VQA-v0"


def equal(one: SubnetTable, other: SubnetTable, folder: Path) -> bool:
    one.save(folder / "one.npz")
    other.save(folder / "other.npz")
    return (folder / "one.npz").read_bytes() == (folder / "other.npz").read_bytes()


def test_table_equals_the_engines_scores(small_problem, small_table):
    for split, count in (("reward", 10), ("test", 6)):
        examples = table_examples(small_problem, split, count)
        scores = small_problem.evaluator.evaluate(small_table.masks, examples, divergences=True)
        stored = small_table.scores[split]
        np.testing.assert_allclose(stored.losses, scores.losses, rtol=1e-6)
        np.testing.assert_allclose(stored.metrics, scores.metrics, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(stored.divergences, scores.divergences, rtol=1e-5, atol=1e-9)
        assert stored.divergences[0] == 0
    assert len(np.unique(small_table.scores["reward"].losses)) == 64
    assert small_table.macs.tolist() == [small_problem.costs.macs(mask) for mask in small_table.masks]
    assert small_table.meta.statistics == tuple(STATISTICS)
    assert small_table.statistics.shape == (6, len(STATISTICS))
    assert (small_table.meta.reward_examples, small_table.meta.test_examples) == (10, 6)


def test_batches_walk_the_tree_once(small_problem):
    small_problem.evaluator.forget()
    done: list[float] = []
    _, spent = build_table(small_problem, ENV_ID, 10, 6, on_scores=done.append)
    assert done == [0, *[4 / 64] * 128, *[2 / 64] * 64, *[4 / 64] * 64, *[2 / 64] * 64]
    assert spent.layer_runs == 5 * (2 + 2 * 4 + 2 * 16)  # at each of 3 stages two layers a parent state
    assert spent.examples == 64 * 16


@pytest.mark.parametrize("each", [False, True])
def test_build_table_resumes_after_a_kill(small_problem, each, tmp_path):
    """Within each batch of the reward split, and one of the test split: no mask is scored twice on an example."""
    checkpoint = tmp_path / "checkpoint.npz"
    wanted, whole = build_table(small_problem, ENV_ID, 10, 6, each=each)
    done: list[float] = []

    def killed(number: float) -> None:
        done.append(number)
        if len(done) == 50:
            raise KeyboardInterrupt

    for total in (49 * 4 / 64, 98 * 4 / 64, 8 + 19 * 2 / 64, 10 + 4 * 4 / 64):
        done.clear()
        small_problem.evaluator.forget()
        with pytest.raises(KeyboardInterrupt):
            build_table(small_problem, ENV_ID, 10, 6, checkpoint, killed, each=each, save_seconds=0)
        assert sum(done) == pytest.approx(total)
    done.clear()
    small_problem.evaluator.forget()
    table, spent = build_table(small_problem, ENV_ID, 10, 6, checkpoint, done.append, each=each)
    assert sum(done) == 16
    assert (spent.masks, spent.examples, spent.broken) == (whole.masks, whole.examples, whole.broken)
    assert whole.layer_runs < spent.layer_runs < 1.2 * whole.layer_runs  # the first layers ran again
    assert equal(table, wanted, tmp_path)


@pytest.mark.parametrize("change", [{"done": {"reward": 1}}, {"done": 3}, {"spent": {"x": 1}}, {"format": 1}, 3])
def test_damaged_checkpoints_are_rejected(small_problem, tmp_path, change):
    path = tmp_path / "checkpoint.npz"
    build_table(small_problem, ENV_ID, 2, 2, path)
    for other in ({"max_skipped": 2}, {"each": True}):
        with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be resumed .*another table"):
            build_table(small_problem, ENV_ID, 2, 2, path, **other)
    with np.load(path) as arrays:
        content = dict(arrays)
    meta = change if isinstance(change, int) else {**json.loads(str(content["meta"])), **change}
    np.savez(path, **{**content, "meta": np.array(json.dumps(meta))})
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be resumed"):
        build_table(small_problem, ENV_ID, 2, 2, path)


@pytest.mark.parametrize(("array", "shape"), [("reward", (3, 7)), ("batch", (3, 7, 2))])
def test_arrays_of_other_masks_in_a_checkpoint_are_rejected(small_problem, tmp_path, array, shape):
    path = tmp_path / "checkpoint.npz"
    build_table(small_problem, ENV_ID, 2, 2, path)
    with np.load(path) as arrays:
        content = {"scored": np.zeros(64, dtype=bool), **arrays, array: np.zeros(shape)}
    np.savez(path, **content)
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be resumed .*other masks"):
        build_table(small_problem, ENV_ID, 2, 2, path)


@pytest.mark.slow
def test_non_finite_losses_affect_one_mask(small_kwargs):
    problem = build_problem(ProblemConfig(**small_kwargs))
    with torch.no_grad():
        problem.vlp.skippable_layer(3).skip_adapter.up.bias.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match=r"skips layers \[3\], and of 31 other masks"):
        table, _ = build_table(problem, ENV_ID, 2, 2)
    broken = table.masks[:, 3]
    for split in ("reward", "test"):
        assert np.isinf(table.scores[split].losses[broken]).all()
        assert (table.scores[split].metrics[broken] == 0).all()
        assert np.isfinite(table.scores[split].losses[~broken]).all()
    assert not table.best()[3]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "supernet", "reward_data", "test_data"])
def test_check_table_rejects_other_problems(small_problem, small_table, small_kwargs, what):
    other = build_problem(ProblemConfig(**small_kwargs))
    if what == "model":
        other.backbone = replace(other.backbone, base="0123456789abcdef")
    elif what == "supernet":
        with torch.no_grad():
            other.vlp.skippable_layer(0).skip_adapter.up.bias[0] += 1e-3
    else:
        split = what.removesuffix("_data")
        first = table_examples(other, split, 1)[0]
        changed = [
            replace(e, question=e.question + " now") if e.key == first.key else e for e in getattr(other.splits, split)
        ]
        other.splits = replace(other.splits, **{split: tuple(changed)})
    with pytest.raises(ValueError, match=f"{what} is [0-9a-f]+ there"):
        check_table(small_table, other)


def test_problem_hashes_cover_answers(small_problem):
    examples = table_examples(small_problem, "reward", 3)
    before = problem_hashes(small_problem, examples, examples)
    changed = (*examples[:2], replace(examples[2], answers=("no",) * 3))
    after = problem_hashes(small_problem, changed, examples)
    assert {name for name in before if before[name] != after[name]} == {"reward_data"}


def test_table_examples_are_those_of_environments(small_problem, small_kwargs):
    from das_gym.envs.skip_env import SkipEnv

    env = SkipEnv(reward_examples=7, **small_kwargs)
    assert table_examples(small_problem, "reward", 7) == env.scorer.fixed_examples
    assert len(table_examples(small_problem, "test")) == len(small_problem.splits.test)
    with pytest.raises(ValueError, match="`reward_examples`"):
        table_examples(small_problem, "reward", 0)


def test_hash_tensors_distinguishes_bfloat16():
    tensors = [{"a": torch.tensor([1.0, value], dtype=torch.bfloat16)} for value in (2.0, 3.0)]
    assert hash_tensors([], tensors[0]) != hash_tensors([], tensors[1])
    assert hash_tensors([], tensors[0]) == hash_tensors([], {"a": tensors[0]["a"].clone()})
    assert hash_tensors([], {"a": torch.tensor(1)})


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task"), [("ViLT", "vqa"), ("METER", "nlvr2"), ("ViLT", "retrieval")])
def test_bundled_tables_hold_current_costs(model, task):
    config = ProblemConfig(model=model, task=task)
    table, problem = SubnetTable.load(config.bundled_path(f"{task}_table.npz")), build_problem(config)
    np.testing.assert_array_equal(table.macs, problem.costs.macs_cost.amounts(table.masks))
    np.testing.assert_allclose(table.statistics, with_statistics(table, problem).statistics, rtol=1e-4, atol=1e-6)
    assert table.meta.macs_full == problem.costs.macs_full
    assert table.meta.costs["memory_saved"] == problem.costs.memory.as_dict()


def test_max_skipped_limits_the_table(small_problem, small_table, tmp_path):
    """It holds what the whole table holds of them, answers for them alone, and comes back from disk."""
    build_table(small_problem, ENV_ID, 10, 6, max_skipped=2)[0].save(tmp_path / "few.npz")
    few = SubnetTable.load(tmp_path / "few.npz")
    count = few.n_layers
    assert len(few.masks) == 1 + count + count * (count - 1) // 2
    assert few.masks.sum(axis=1).max() == 2
    whole = small_table.index(few.masks)
    for split in ("reward", "test"):
        np.testing.assert_allclose(few.scores[split].losses, small_table.scores[split].losses[whole], rtol=1e-6)
    np.testing.assert_array_equal(few.macs, small_table.macs[whole])
    np.testing.assert_array_equal(few.layer_macs.savings, small_table.layer_macs.savings)
    np.testing.assert_array_equal(few.index(few.masks), np.arange(len(few.masks)))
    with pytest.raises(ValueError, match="at most 2"):
        few.index(np.ones(count, dtype=bool))


def test_tabular_env_takes_a_limited_table(small_problem, tmp_path):
    build_table(small_problem, ENV_ID, 4, 4, max_skipped=2)[0].save(tmp_path / "few.npz")
    assert TabularEnv(table=tmp_path / "few.npz").scorer.budget.skip_num == 2  # the default, 4, is not in the table
    env = TabularEnv(table=tmp_path / "few.npz", skip_num=2)
    env.reset(seed=0)
    few, many = np.zeros((2, env.action_space.n), dtype=np.int8)
    few[:2], many[:5] = 1, 1
    _, reward, _, _, info = env.step(few)
    assert np.isfinite(info["loss"])
    env.reset()
    _, worse, _, _, info = env.step(many)
    assert worse < reward
    assert not info["feasible"]
    with pytest.raises(ValueError, match="`skip_num`"):
        TabularEnv(table=tmp_path / "few.npz", skip_num=3)
