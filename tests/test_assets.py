"""The bundled models match `das_gym/assets/README.md`."""

from pathlib import Path

import numpy as np
import pytest
from das_gym.adapt.evaluate import evaluate, with_mean_image
from das_gym.adapt.finetuning import new_subnet

from benchmarks.bundled import check_table
from das_gym.engine.ranking import recalls, score_pairs
from das_gym.envs.tabular_env import bundled_table
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import load_problem
from das_gym.registration import ASSETS, ENVIRONMENTS
from das_gym.tables.build import table_examples
from das_gym.tables.table import SubnetTable

pytestmark = pytest.mark.slow


def test_assets_are_small_in_total():
    assert sum(path.stat().st_size for path in Path(ASSETS).rglob("*") if path.is_file()) < 40e6


@pytest.mark.parametrize("entry", [each for each in ENVIRONMENTS.values() if each.is_bundled], ids=lambda entry: entry.short)
def test_bundled_environments_have_tables_of_their_supernets(entry):
    table = SubnetTable.load(bundled_table(entry.model, entry.task))
    assert table.meta.env_id == entry.id
    check_table(table, load_problem(ProblemConfig(model=entry.model, task=entry.task)))
    metrics = table.values("metric", "test")
    of_four = metrics[table.within(skip_num=4)]
    assert metrics[0] >= 0.8
    assert of_four.max() - of_four.min() >= 0.2


@pytest.mark.parametrize("model", [entry.model for entry in ENVIRONMENTS.values() if entry.task == "retrieval"])
def test_retrieval_is_ten_times_better_than_chance(model):
    problem, images = load_problem(ProblemConfig(model=model, task="retrieval")), 20
    ranked = problem.task.gallery(problem.splits.test, images)
    scores = score_pairs(problem.vlp, problem.head, problem.task.processor, ranked.images, ranked.texts)
    found = recalls(scores, ranked.image_of_text)
    assert min(found["tr_r1"], found["ir_r1"]) >= 10 / images


def test_bundled_model_answers_and_needs_the_image():
    problem = load_problem(ProblemConfig())
    subnet, test = new_subnet(ProblemConfig(), np.zeros(12, bool)), problem.splits.test[:600]
    seen = evaluate(subnet, test, "seeing")
    blinded = evaluate(with_mean_image(subnet, test), test, "blinded")
    assert seen.metric >= 0.75
    assert seen.metric - blinded.metric >= 0.25
    for family in ("attribute", "existence", "count", "relation", "nearest"):
        assert seen.numbers[f"question/{family}"] - blinded.numbers[f"question/{family}"] >= 0.10


def test_table_of_separate_attention_and_mlp():
    """All masks of up to 4 of SmolVLM-mini's 24 sublayers; it holds what the model scores."""
    table = SubnetTable.load(ASSETS / "smolvlm_mini" / "answering_sublayers_table.npz")
    assert len(table.masks) == 12_951
    problem = load_problem(ProblemConfig(model="VLM", task="answering", units="sublayers"))
    assert table.meta.layer_names == problem.layer_names
    check_table(table, problem)
    masks = table.masks[[0, -1]]
    scores = problem.evaluator.evaluate(masks, table_examples(problem, "reward", table.meta.reward_examples))
    np.testing.assert_allclose(scores.losses, table.scores["reward"].losses[table.index(masks)], rtol=1e-4)


@pytest.mark.parametrize(
    "path", sorted(ASSETS.glob("*_mini/*_table.npz")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_table_holds_the_latency_of_its_units(path):
    table = SubnetTable.load(path)
    cost = table.costs["latency_saved"]
    assert cost.savings.shape == (table.n_layers,)
    assert (cost.savings > 0).all()
    assert table.meta.costs["latency_saved"]["measured"]["threads"] == 1


def test_table_equals_the_models_scores():
    table, problem = SubnetTable.load(bundled_table("METER", "vqa")), load_problem(ProblemConfig())
    masks = np.stack((table.masks[0], table.best(skip_num=4)))
    scores = problem.evaluator.evaluate(masks, table_examples(problem, "test", table.meta.test_examples))
    rows = table.index(masks)
    np.testing.assert_allclose(scores.losses, table.scores["test"].losses[rows], rtol=1e-4)
    np.testing.assert_allclose(scores.metrics, table.scores["test"].metrics[rows], atol=1e-3)
