from __future__ import annotations

import dataclasses
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from das_gym.engine.scores import Scores
from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import every_mask, masks_up_to
from das_gym.problem.rewards import REWARDS, Objective
from das_gym.tables.groups import GroupScores
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


def make_grouped_table() -> SubnetTable:
    """The same, with two groups of examples, as large as each other."""
    table = make_table()
    apart = {
        split: GroupScores(np.stack([each.losses] * 2), np.stack([each.metrics] * 2), np.array([count // 2] * 2))
        for (split, each), count in zip(table.scores.items(), (20, 10), strict=True)
    }
    meta = dataclasses.replace(table.meta, groups=("colour", "count"))
    return dataclasses.replace(table, meta=meta, group_statistics=np.ones((2, 3, 2), "f4"), group_scores=apart)


@pytest.fixture
def table() -> SubnetTable:
    return make_table()


def test_rows_of_a_table_of_few_skipped_layers(table: SubnetTable):
    kept = table.index(masks_up_to(3, 2))
    scores = {split: Scores(*(part[kept] for part in vars(each).values())) for split, each in table.scores.items()}
    few = make_table(meta=replace(table.meta, max_skipped=2), scores=scores, macs=table.macs[kept])
    np.testing.assert_array_equal(few.index(few.masks), np.arange(7))
    assert few.rows(np.ones(3, int)) == -1
    for mask in few.masks:
        assert few.describe(mask) == table.describe(mask)


def test_rows_are_numbered_by_bits(table: SubnetTable):
    assert table.masks[5].tolist() == [True, False, True]
    assert table.index([1, 0, 1]) == 5
    np.testing.assert_array_equal(table.index(table.masks), np.arange(8))
    np.testing.assert_array_equal(table.index(table.masks.reshape(2, 4, 3)), np.arange(8).reshape(2, 4))


@pytest.mark.parametrize(
    ("masks", "says"), [([1, 0], "has 3 layers"), (1, "has 3 layers"), ([2, 0, 1], "other values than 0")]
)
def test_what_is_no_mask_is_refused(table: SubnetTable, masks, says: str):
    with pytest.raises(ValueError, match=says):
        table.index(masks)


@pytest.mark.parametrize(
    ("by", "value"),
    [
        ("loss", 0.4),
        ("metric", 0.8),
        ("divergence", 0.04),
        ("exp_neg_loss", np.exp(-0.4)),
        ("neg_loss", -0.4),
        ("neg_kl", -0.04),
    ],
)
def test_values_by_name(table: SubnetTable, by: str, value: float):
    assert table.values(by)[1] == pytest.approx(value, rel=1e-6)


def test_unknown_names_are_refused(table: SubnetTable):
    with pytest.raises(ValueError, match="unknown value 'los'; did you mean 'loss'"):
        table.best("los")
    with pytest.raises(ValueError, match="unknown split 'tes'; did you mean 'test'"):
        table.best(split="tes")


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
def test_the_best_within_a_budget(table: SubnetTable, asked: dict, row: int):
    assert table.index(table.best(**asked)) == row


def test_budgets_out_of_reach_are_refused(table: SubnetTable):
    with pytest.raises(ValueError, match="`skip_num`"):
        table.best(skip_num=4)
    with pytest.raises(ValueError, match="out of reach"):
        table.rank([0, 0, 0], macs_saved=0.7)
    with pytest.raises(ValueError, match="more than one budget"):
        table.best(skip_num=1, macs_saved=0.1)


def test_ranks_by_hand(table: SubnetTable):
    assert table.rank(table.masks).tolist() == [2, 1, 6, 5, 3, 3, 7, 8]
    assert table.rank([0, 0, 0], by="metric") == table.rank([1, 0, 0], by="metric") == 1
    assert table.rank([[0, 1, 1], [1, 0, 1]], skip_num=2).tolist() == [3, 1]


def test_regrets_by_hand(table: SubnetTable):
    assert table.regret([0, 1, 1]) == pytest.approx(0.6, rel=1e-6)
    np.testing.assert_allclose(table.regret([[0, 1, 1], [1, 0, 1]], skip_num=2), [0.4, 0.0], rtol=1e-6)
    assert table.regret([0, 1, 1], by="metric", split="test") == pytest.approx(0.4, rel=1e-6)
    assert table.regret([1, 1, 1]) == np.inf


def test_a_mask_off_the_budget_has_no_rank(table: SubnetTable):
    for ask in (table.rank, table.regret):
        with pytest.raises(ValueError, match="breaks the budget"):
            ask([1, 1, 0], skip_num=1)


@pytest.mark.parametrize("by", ["metric", "loss"])
def test_pareto_front_against_every_pair(table: SubnetTable, by: str):
    value = table.values(by) if by == "metric" else -table.values(by)
    beaten = [
        any(value[j] >= value[i] and MACS[j] <= MACS[i] and (value[j] > value[i] or MACS[j] < MACS[i]) for j in range(8))
        for i in range(8)
    ]
    front = table.index(table.pareto_front(by, "reward"))
    assert front.tolist() == sorted(np.flatnonzero(~np.array(beaten)), key=lambda row: MACS[row])


def test_describes_a_mask_in_plain_numbers(table: SubnetTable):
    told = table.describe([0, 1, 0])
    assert told["macs"] == 700
    assert told["macs_saved"] == pytest.approx(2 / 9)
    assert told["reward_loss"] == pytest.approx(0.9)
    assert told["test_loss"] == pytest.approx(0.6)
    assert {type(value) for value in told.values()} == {int, float}


def test_layers_cost_what_masks_cost(table: SubnetTable):
    np.testing.assert_array_equal(table.layer_macs.amounts(table.masks), table.macs)
    np.testing.assert_allclose(table.layer_macs.saved(table.masks), table.macs_saved)


def test_what_was_not_measured_is_not_answered():
    reward = Scores(LOSSES, METRICS, np.full(8, np.nan))
    table = make_table(scores={"reward": reward, "test": reward})
    with pytest.raises(ValueError, match="holds no divergence of the reward split"):
        table.best("divergence")
    with pytest.raises(ValueError, match="holds no neg_kl"):
        table.rank([0, 0, 0], by="neg_kl")


def test_reads_back_what_was_written(table: SubnetTable, tmp_path: Path):
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


def test_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"python -m agents table with '?out="):
        SubnetTable.load(tmp_path / "table.npz")


@pytest.mark.parametrize("harm", ["cut", "text", "other arrays", "other format"])
def test_a_damaged_file_is_named(table: SubnetTable, tmp_path: Path, harm: str):
    path = tmp_path / "table.npz"
    table.save(path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif harm == "text":
        path.write_text("not a table")
    elif harm == "other arrays":
        np.savez(path, losses=LOSSES)
    else:
        np.savez(path, meta=np.array('{"format": "das_gym table 0"}'))
    with pytest.raises(ValueError, match=r"table\.npz is no table of this version"):
        SubnetTable.load(path)


def test_any_flipped_bit_is_named_or_changes_nothing(table: SubnetTable, tmp_path: Path):
    path = tmp_path / "table.npz"
    table.save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            twin = SubnetTable.load(path)
        except ValueError as error:
            told = str(error)
        else:
            told = ""
            twin.save(tmp_path / "again.npz")
            assert (tmp_path / "again.npz").read_bytes() == whole
        assert not told or "table.npz is no table of this version" in told


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"macs": -MACS}, "macs holds -1000, which nothing can have measured"),
        ({"macs": MACS.astype(float)}, "macs is of type float64; a table holds whole numbers"),
        ({"statistics": np.full((3, 2), np.nan)}, "statistics holds nan"),
        ({"statistics": np.ones((3, 2), complex)}, "statistics is of type complex128; a table holds real numbers"),
        *(({"losses": np.full(8, value)}, "reward_losses") for value in (-1.0, np.nan, 1j)),
        ({"losses": LOSSES.astype(str)}, "reward_losses is of type"),
        *(({"metrics": METRICS + more}, "reward_metrics holds") for more in (-2, 1, np.inf)),
        ({"macs": MACS.astype(np.uint64) + 2**60}, "macs holds 1152921504606847976, which nothing can have measured"),
    ],
)
def test_numbers_that_nothing_measures_are_refused(change: dict, match: str):
    if "macs" in change or "statistics" in change:
        given = change
    else:
        scores = Scores(change.get("losses", LOSSES), change.get("metrics", METRICS), METRICS)
        given = {"scores": {"reward": scores, "test": scores}}
    with pytest.raises(ValueError, match=match):
        make_table(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward_metrics", np.nan),
        ("test_metrics", np.nan),
        ("reward_divergences", -1.0),
        ("reward_group_losses", np.nan),
        ("reward_group_metrics", -1.0),
        ("reward_group_metrics", 2.0),
        ("reward_group_sizes", -1),
        ("test_group_sizes", 0.5),
        ("group_statistics", "text"),
        ("group_statistics", np.inf),
        ("statistics", "text"),
    ],
)
def test_load_refuses_numbers_that_nothing_measures(name: str, value: object, tmp_path: Path):
    make_grouped_table().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        changed = {**arrays, name: np.full(arrays[name].shape, value)}
    np.savez(tmp_path / "a.npz", **changed)
    with pytest.raises(ValueError, match=rf"a\.npz is no table of this version of das_gym \({name}"):
        SubnetTable.load(tmp_path / "a.npz")


def test_load_keeps_divergences_that_were_not_measured(tmp_path: Path):
    scores = Scores(LOSSES, METRICS, np.full(8, np.nan))
    make_table(scores={"reward": scores, "test": scores}).save(tmp_path / "a.npz")
    assert np.isnan(SubnetTable.load(tmp_path / "a.npz").values("divergence")).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"macs_full": 0}, "macs_full is not allowed"),
        ({"macs_full": 10**400}, "macs_full is not allowed; a model has from 1 to 9,007,199,254,740,992"),
        ({"layer_names": tuple(map(str, range(10**6)))}, "a table of 1,000,000 layers is not allowed; 1,024 are the most"),
    ],
)
def test_a_description_that_no_model_has_is_refused(change: dict, match: str):
    with pytest.raises(ValueError, match=match):
        make_table(meta=dataclasses.replace(make_table().meta, **change))


def test_a_loss_may_be_infinite():
    scores = Scores(np.full(8, np.inf), METRICS, METRICS)
    assert np.isinf(make_table(scores={"reward": scores, "test": scores}).values("loss")).all()


def test_arrays_must_fit():
    with pytest.raises(ValueError, match=r"macs has shape \(7,\); this table needs \(8,\)"):
        make_table(macs=MACS[:7])
    with pytest.raises(ValueError, match=r"reward_losses has shape \(4,\)"):
        make_table(scores={split: Scores(LOSSES[:4], METRICS, METRICS) for split in ("reward", "test")})


def test_too_many_layers():
    with pytest.raises(
        ValueError, match=r"2\^17 masks of 17 layers cannot be listed \(1 layer at least, 65,536 masks at most\)"
    ):
        every_mask(17)


def test_a_table_of_something_else_is_refused(table: SubnetTable):
    table.check_hashes(table.meta.hashes)
    with pytest.raises(ValueError, match="made from something else: supernet is s there and x here"):
        table.check_hashes({**table.meta.hashes, "supernet": "x"})
    older = make_table(meta=replace(table.meta, hashes={}))
    with pytest.raises(ValueError, match="model is None there"):
        older.check_hashes(table.meta.hashes)


def test_an_objective_ranks_as_its_environment_rewards(table: SubnetTable):
    """Price and budget are the objective's; another budget may be given beside it."""
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


def test_values_are_ranked_in_the_unit_of_what_they_are(table: SubnetTable):
    assert table.rank_of_values(np.array([LOSSES.min(), LOSSES.max()]), "loss").tolist() == [1, 8]
    assert table.rank_of_values(np.exp(-np.array([LOSSES.min(), LOSSES.max()])) * [2, 0], "exp_neg_loss").tolist() == [1, 8]
