import dataclasses
import itertools
import json

import numpy as np
import pytest

from das_gym.engine.scores import Scores
from das_gym.files import write_json
from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.tables.suite import (
    FORMAT,
    SuiteTable,
    load_suite,
    random_probabilities,
    read_suite,
    suite_record,
    table_problems,
)
from tests.made_up_suite import made_up_table


@pytest.mark.parametrize(
    "budget",
    [Budget(5, 2), Budget(5, saved=0.2, cost=MaskCost(100, 100, np.array([5, 12, 9, 20, -3])))],
    ids=["count", "cost"],
)
def test_random_probabilities_agree_with_all_orders(budget):
    masks = every_mask(5)
    useful = np.flatnonzero(budget.useful_layers)
    counts, orders = np.zeros(32), list(itertools.permutations(useful))
    for order in orders:
        mask = np.zeros(5, bool)
        for unit in order:
            if budget.is_feasible(mask[None])[0]:
                break
            mask[unit] = True
        counts[mask @ (1 << np.arange(5))] += 1
    found = random_probabilities(masks, budget.is_feasible(masks), budget.useful_layers)
    np.testing.assert_allclose(found, counts / len(orders))


def test_load_suite_gives_a_problem_for_each_group_and_budget(made_up_suite):
    suite = load_suite(made_up_suite, "train")
    names = [problem.name for problem in suite.problems]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == {"train-0", "train-1"}
    assert {name.split("/")[2] for name in names} == {"all", "color", "count"}
    assert {name.split("/")[3].split("=")[0] for name in names} == {"skip_num", "macs_saved"}
    for row, problem in enumerate(suite.problems):
        kept = problem.budget.is_feasible(problem.table.masks)
        scaled = problem.scaled(problem.rewards)
        assert scaled[kept].max() == pytest.approx(1)
        assert suite.units[row].sum() == problem.table.n_layers
        assert problem.optimum == problem.rewards[kept].max()
    assert load_suite(made_up_suite, "test").problems[0].source.name == "test-3"


def test_problems_of_leaves_out_trivial_ones():
    source, table = SuiteTable("t.npz", "train", "METER", "vqa", "t"), made_up_table(5, 0)
    found = list(table_problems(source, table))  # of five units ten masks at most skip as many, and 16 save half of all
    assert {(problem.budget.skip_num, problem.budget.saved) for problem in found} == {(None, 0.039)}
    assert [problem.group for problem in found] == ["", "color", "count"]
    flat = np.full(32, 0.5, np.float32)
    scores = dict.fromkeys(("reward", "test"), Scores(flat, flat, flat))
    assert not list(table_problems(source, dataclasses.replace(table.without_groups(), scores=scores)))


def test_suite_rejects_statistics_that_its_tables_lack(made_up_suite):
    for name, holder in (("leave_one_out_4", "statistic"), ("fisher", "statistic of this table")):
        with pytest.raises(ValueError, match=f"unknown {holder} '{name}'"):
            load_suite(made_up_suite, "train", statistics=(name,))


def test_skip_highest_agrees_with_budgets(made_up_suite):
    suite = load_suite(made_up_suite, "train")
    rng = np.random.default_rng(0)
    which = np.arange(len(suite.problems))
    scores = rng.normal(size=(len(which), 16))
    masks = suite.skip_highest(which, scores)
    for row, problem in enumerate(suite.problems):
        n = problem.table.n_layers
        np.testing.assert_array_equal(masks[row, :n], problem.budget.skip_highest(scores[row : row + 1, :n])[0])
        assert not masks[row, n:].any()


def test_wrong_budgets_are_rejected(made_up_suite, tmp_path):
    table = made_up_table(6, 0)
    untimed = dataclasses.replace(table, meta=dataclasses.replace(table.meta, costs={}))
    untimed.save(tmp_path / "a.npz")
    write_json(tmp_path / "suite.json", suite_record([SuiteTable("a.npz", "train", "METER", "vqa", "a")], 0))
    assert load_suite(tmp_path).problems
    with pytest.raises(ValueError, match=r"a\.npz holds no latency"):
        load_suite(tmp_path, budgets=("count", "latency"))
    with pytest.raises(ValueError, match=r"a\.npz holds no memory"):
        load_suite(tmp_path, budgets="memory")
    for budgets in (("latencies",), ()):
        with pytest.raises(ValueError, match="budget"):
            load_suite(made_up_suite, budgets=budgets)


def test_tables_of_pretrained_models_are_problems_of_test():
    suite = load_suite(split="test", max_units=30)
    place = suite.index("SmolLM2-135M/text/all/skip_num=3")
    problem = suite.problems[place]
    assert place >= len(load_suite(split="test").problems)  # the others keep their numbers
    sizes = problem.table.masks.sum(axis=1)
    assert problem.random_mean == pytest.approx(problem.rewards[sizes == 3].mean())
    masks = np.concatenate([every_mask(30, 3)[::500], np.arange(30) < np.array([[4], [30]])])
    rows = suite.rows(np.full(len(masks), place), masks)
    np.testing.assert_array_equal(suite.kept[rows], [True] * (len(masks) - 2) + [False] * 2)
    losses = problem.table.values("loss")[problem.table.index(masks[:-2])]
    np.testing.assert_array_equal(suite.losses[rows[:-2]], losses)
    assert suite.scaled[rows[-2:]] == pytest.approx([-1 - 1 / 30, -1 - 27 / 30])
    np.testing.assert_allclose(suite.saved[rows], problem.table.layer_macs.saved(masks))


def test_max_units_leaves_out_larger_models(made_up_suite):
    assert {problem.table.n_layers for problem in load_suite(made_up_suite, max_units=6).problems} == {6}
    for wrong in (6, 0, "30"):
        with pytest.raises(ValueError, match="max_units"):
            load_suite(made_up_suite, "test", max_units=wrong)  # type: ignore[arg-type]


def test_read_suite_rejects_other_folders_and_tables_outside(tmp_path):
    with pytest.raises(FileNotFoundError, match="make_suite"):
        read_suite(tmp_path)
    (tmp_path / "suite.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged or of another version"):
        read_suite(tmp_path)
    for file in ("", "../other.npz", "/etc/other.npz", "sub\\other.npz"):
        table = {"file": file, "split": "train", "model": "METER", "task": "vqa", "name": "a"}
        (tmp_path / "suite.json").write_text(json.dumps({"format": FORMAT, "tables": [table]}))
        with pytest.raises(ValueError, match="`file`"):
            read_suite(tmp_path)
