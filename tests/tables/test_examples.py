import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bundled import check_table
from das_gym.engine.scores import Scores
from das_gym.envs.tabular_env import TabularEnv
from das_gym.tables.build import build_table, table_examples
from das_gym.tables.examples import ExampleScores
from das_gym.tables.table import SubnetTable
from tests.made_up_tables import GROUPS, made_up_table

ENV_ID = "DAS-METER-VQA-v0"
HALF = 2.0**-11


@pytest.fixture(scope="module")
def each_file(small_problem, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("each") / "table.npz"
    build_table(small_problem, ENV_ID, 12, 8, each=True)[0].save(path)
    return path


def test_example_scores_agree_with_the_engine(small_problem, each_file):
    table = SubnetTable.load(each_file)
    examples = table_examples(small_problem, "reward", 12)
    assert table.examples is not None
    scores = small_problem.evaluator.evaluate_each(table.masks, examples)
    found = table.examples["reward"]
    np.testing.assert_allclose(found.losses.T, scores.losses, rtol=HALF * 1.001)
    np.testing.assert_array_equal(found.metric_values[found.metrics].T, scores.metrics.astype(np.float32))
    assert found.keys.tolist() == [e.key for e in examples]
    assert [table.meta.groups[g] for g in found.groups] == [e.question_type for e in examples]
    same = [[a.image.key == b.image.key for a in examples] for b in examples]
    np.testing.assert_array_equal(found.images[:, None] == found.images, same)
    np.testing.assert_allclose(found.means(np.arange(12)).losses, table.scores["reward"].losses, rtol=HALF)


def test_check_table_notices_changed_pixels(small_problem, each_file):
    table = SubnetTable.load(each_file)
    check_table(table, small_problem)
    table.meta.hashes["reward_content"] = "0" * 16
    with pytest.raises(ValueError, match="reward_content is 0000000000000000 there"):
        check_table(table, small_problem)


def test_group_table_agrees_with_the_engine(small_problem, each_file):
    table = SubnetTable.load(each_file)
    examples = table_examples(small_problem, "reward", 12)
    shared = {e.question_type for e in examples} & {e.question_type for e in table_examples(small_problem, "test", 8)}
    group = sorted(shared)[0]
    part = table.group_table(group)
    members = [e for e in examples if e.question_type == group]
    np.testing.assert_allclose(part.values("loss"), small_problem.evaluator.losses(table.masks, members), rtol=HALF)
    alone = part.values("loss")[part.index(np.eye(6, dtype=bool))] - part.values("loss")[0]
    column = part.meta.statistics.index("leave_one_out")
    np.testing.assert_allclose(part.statistics[:, column], alone, atol=1e-6)
    assert part.meta.reward_examples == len(members)
    with pytest.raises(ValueError, match="colour"):
        table.group_table("colour")
    env = TabularEnv(table=str(each_file), skip_num=2, group=group)
    assert env.reset()[1]["loss"] == pytest.approx(part.values("loss")[0])


def test_group_table_needs_examples_in_both_splits():
    table = made_up_table(5, seed=1)
    assert table.separate_groups == GROUPS
    of_first = dataclasses.replace(table.examples["test"], groups=table.examples["test"].groups * 0)
    lacking = dataclasses.replace(table, examples={**table.examples, "test": of_first})
    assert lacking.separate_groups == GROUPS[:1]
    with pytest.raises(ValueError, match="`group` has no examples"):
        lacking.group_table("count")
    means = dataclasses.replace(table, examples=None, group_statistics=None)
    assert means.separate_groups == ()
    with pytest.raises(ValueError, match="`each=True`"):
        means.group_table("count")


@pytest.mark.parametrize("batches", ["fixed", "cycle", "resample"])
def test_reward_batches_agree_with_the_model(batches, small_kwargs, each_file):
    from das_gym.envs.skip_env import SkipEnv

    live = SkipEnv(skip_num=2, reward_examples=5, reward_batches=batches, **small_kwargs)
    live.scorer.total = 12  # as many reward examples as the table has
    tabular = TabularEnv(table=str(each_file), skip_num=2, reward_examples=5, reward_batches=batches)
    live.reset(seed=3)
    tabular.reset(seed=3)
    for place in range(4):
        mask = np.zeros(6, bool)
        mask[[place, place + 1]] = True
        ours, theirs = tabular.step(mask), live.step(mask)
        assert ours[4]["loss"] == pytest.approx(theirs[4]["loss"], rel=HALF)
        assert ours[4]["metric"] == pytest.approx(theirs[4]["metric"], abs=1e-6)
        live.reset()
        tabular.reset()


def test_non_finite_losses_affect_one_mask():
    empty = ExampleScores.empty(2, np.zeros(2, np.int16), np.zeros(2, np.int32), ["a", "b"])
    losses = np.array([[1.0, np.nan], [1.0, 1e6]])
    found = empty.put(0, Scores(losses, np.ones((2, 2)), losses)).means(np.arange(2))
    assert found.losses[0] == np.inf
    assert found.metrics.tolist() == [0.0, 1.0]
    assert found.losses[1] == pytest.approx((1 + 65504) / 2)
