import dataclasses
import itertools

import numpy as np
import pytest

from das_gym.engine.scores import Scores
from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import every_mask
from das_gym.problem.rewards import REWARDS, Objective
from das_gym.tables.examples import ExampleScores
from das_gym.tables.table import SubnetTable, TableMeta

LOSSES = np.array([0.5, 0.4, 0.9, 0.7, 0.6, 0.6, 1.0, np.inf])
METRICS = np.array([0.8, 0.8, 0.5, 0.6, 0.7, 0.7, 0.4, 0.0])
MACS = 1000 - every_mask(3) @ np.array([100, 300, 200])


def make_table(**changes) -> SubnetTable:
    meta = TableMeta(
        env_id="DAS-METER-VQA-v0",
        layer_names=("a", "b", "c"),
        metric_name="accuracy",
        macs_full=900,
        reward_examples=20,
        test_examples=10,
        statistics=("depth", "stream"),
        hashes={"model": "m", "supernet": "s", "reward_data": "r", "test_data": "t"},
        versions={"torch": "2"},
    )
    reward = Scores(*(array.astype(np.float32) for array in (LOSSES, METRICS, LOSSES / 10)))
    test = Scores(*(array.astype(np.float32) for array in (LOSSES[::-1], METRICS, LOSSES / 5)))
    fields = {"meta": meta, "scores": {"reward": reward, "test": test}, "macs": MACS, "statistics": np.ones((3, 2), "f4")}
    return SubnetTable(**{**fields, **changes})


def make_table_of_examples() -> SubnetTable:
    """The same, with every example: of two groups, as large as each other."""
    table, examples = make_table(), {}
    for split, count in (("reward", 20), ("test", 10)):
        each, numbers = table.scores[split], np.arange(count)
        empty = ExampleScores.empty(8, (numbers % 2).astype(np.int16), numbers.astype(np.int32), list(map(str, numbers)))
        columns = [np.repeat(values[:, None], count, axis=1) for values in (each.losses, each.metrics, each.divergences)]
        examples[split] = empty.put(0, Scores(*columns))
    meta = dataclasses.replace(table.meta, groups=("colour", "count"))
    return dataclasses.replace(table, meta=meta, group_statistics=np.ones((2, 3, 2), "f4"), examples=examples)


@pytest.fixture
def table() -> SubnetTable:
    return make_table()


@pytest.mark.parametrize("masks", [[1, 0], 1, [2, 0, 1]])
def test_index_rejects_other_arrays(table, masks):
    with pytest.raises(ValueError, match="mask"):
        table.index(masks)


@pytest.mark.parametrize(
    ("by", "value"), [("loss", 0.4), ("metric", 0.8), ("divergence", 0.04), ("exp_neg_loss", np.exp(-0.4))]
)
def test_values_agree_with_their_names(table, by, value):
    assert table.values(by)[1] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ({}, 1),
        ({"by": "metric"}, 1),  # 0 is as good and costs more
        ({"split": "test"}, 0b110),
        ({"skip_num": 1, "by": "neg_loss"}, 1),
        ({"skip_num": 2}, 0b101),
        ({"macs_saved": 0.1}, 0b101),  # 700 of 900 MACs are left
        ({"macs_saved": 0.4}, 0b110),
    ],
)
def test_best_within_a_budget(table, asked, row):
    assert table.index(table.best(**asked)) == row


def test_rank_by_hand(table):
    assert table.rank(table.masks).tolist() == [2, 1, 6, 5, 3, 3, 7, 8]
    assert table.rank([0, 0, 0], by="metric") == table.rank([1, 0, 0], by="metric") == 1
    assert table.rank([[0, 1, 1], [1, 0, 1]], skip_num=2).tolist() == [3, 1]


def test_regret_by_hand(table):
    assert table.regret([0, 1, 1]) == pytest.approx(0.6, rel=1e-6)
    np.testing.assert_allclose(table.regret([[0, 1, 1], [1, 0, 1]], skip_num=2), [0.4, 0.0], rtol=1e-6)
    assert table.regret([0, 1, 1], by="metric", split="test") == pytest.approx(0.4, rel=1e-6)
    assert table.regret([1, 1, 1]) == np.inf


def test_rank_rejects_masks_off_the_budget(table):
    for ask in (table.rank, table.regret):
        with pytest.raises(ValueError, match="violates the budget"):
            ask([1, 1, 0], skip_num=1)


def test_missing_divergences_are_rejected():
    reward = Scores(LOSSES, METRICS, np.full(8, np.nan))
    table = make_table(scores={"reward": reward, "test": reward})
    with pytest.raises(ValueError, match="holds no divergence of the reward split"):
        table.best("divergence")
    with pytest.raises(ValueError, match="holds no neg_kl"):
        table.rank([0, 0, 0], by="neg_kl")


def test_load_reads_what_save_wrote(table, tmp_path):
    path = tmp_path / "new folder" / "table.npz"
    table.save(path)
    twin = SubnetTable.load(path)
    assert twin.meta == table.meta
    np.testing.assert_array_equal(twin.macs, table.macs)
    np.testing.assert_array_equal(twin.statistics, table.statistics)
    for split, name in itertools.product(("reward", "test"), ("losses", "metrics", "divergences")):
        np.testing.assert_array_equal(getattr(twin.scores[split], name), getattr(table.scores[split], name))
    twin.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arrays", [{"losses": LOSSES}, {"meta": np.array('{"format": "das_gym table 0"}')}], ids=str)
def test_load_rejects_other_files(tmp_path, arrays):
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"table\.npz is not a table of this version"):
        SubnetTable.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("macs", 0.5),
        ("reward_divergences", -1.0),
        ("reward_example_losses", np.nan),
        ("group_statistics", "text"),
    ],
)
def test_load_rejects_impossible_numbers(name, value, tmp_path):
    make_table_of_examples().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        changed = {**arrays, name: np.full(arrays[name].shape, value)}
    np.savez(tmp_path / "a.npz", **changed)
    with pytest.raises(ValueError, match=rf"a\.npz is not a table of this version of das_gym \({name}"):
        SubnetTable.load(tmp_path / "a.npz")


@pytest.mark.parametrize("change", [{"macs_full": 0}, {"macs_full": 10**400}, {"layer_names": ("a",) * 10**6}])
def test_table_rejects_impossible_models(change):
    with pytest.raises(ValueError, match=r"macs_full|layers"):
        make_table(meta=dataclasses.replace(make_table().meta, **change))


def test_objective_ranks_like_its_environment(table):
    """Price and budget are the objective's; another budget may be added."""
    objective = Objective(Budget(3, 1), REWARDS["metric"], table.layer_macs, macs_price=2.0)
    rewards = table.values("metric") + 2.0 * table.layer_macs.saved(table.masks)
    within = table.masks.sum(axis=1) == 1
    np.testing.assert_allclose(table.values(objective)[within], rewards[within])
    assert (table.values(objective)[~within] < rewards[within].min()).all()
    best = table.best(objective)
    assert best.sum() == 1
    assert rewards[table.index(best)] == rewards[within].max()
    expected = [1 + (rewards[within] > reward).sum() for reward in rewards[within]]
    assert table.rank(table.masks[within], objective).tolist() == expected
    assert table.rank_of_values(rewards[within], objective).tolist() == expected
    assert table.rank_of_values(np.array([-np.inf, np.inf]), objective).tolist() == [4, 1]
    np.testing.assert_allclose(table.regret(table.masks[within], objective), rewards[within].max() - rewards[within])
    assert table.rank(np.ones(3, bool), objective, skip_num=3) == 1
