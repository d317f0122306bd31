"""Recoveries, predictors and skip adapters on tiny models."""

import copy

import numpy as np
import pytest

from benchmarks import recovery
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.problem import problem_from_model
from tests.models.transformers import tiny


@pytest.mark.slow
def test_losses_of_given_masks_after_recovery(tiny_llava, tmp_path):
    settings = ["--checkpoint", tiny_llava["checkpoint"], "--data-root", tiny_llava["data_root"], "--layers", "1", "0"]
    settings += ["--steps", "2", "4", "--batch-size", "4", "--recover", "none", "last_layers", "linear"]
    first = recovery.main(["masks", *settings, "--out", str(tmp_path / "first.json")])
    ways = ["none", "last_layers, 2 steps", "last_layers, 4 steps", "linear"]
    assert [list(row["recovered"]) for row in first["rows"]] == [ways, ways]
    for row in first["rows"]:
        losses = [row["recovered"][way]["loss"] for way in ways]
        assert len(set(losses)) == len(ways)
    again = recovery.main(["masks", *settings, "--out", str(tmp_path / "first.json")])
    assert again == first, "the same command reads what it has measured"


def test_regret_of_finalists_is_that_of_the_best_after_the_fewest_steps():
    quick, long = ([5.0, 4.0, 9.0, 9.0, 3.0, 1.0], [1.0, 0.7, 0.6, 2.0, 0.9, 0.5])
    rows = [
        {"recovered": {"lora, 20 steps": {"loss": a}, "lora, 300 steps": {"loss": b}}}
        for a, b in zip(quick, long, strict=True)
    ]
    lines = recovery.table_of_predictors({"rows": rows, "predictors": dict.fromkeys(recovery.PREDICTORS, range(6))})
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[-1] for line in lines.splitlines()}
    assert cells["| lora, 300 steps", "linear"] == "0.5000 |"
    # the sixth mask is not among the five that the predictor prefers
    assert cells["| lora, 300 steps", "linear, 5 finalists: lora, 20 steps"] == "0.4000 |"


@pytest.mark.slow
def test_every_form_is_measured(tmp_path):
    checkpoint = tiny.save("llama", tmp_path / "model")
    words = ["--checkpoint", str(checkpoint), "--data-root", str(tiny.text_folder(tmp_path)), "--context", "16"]
    rows = recovery.main(["forms", *words, "--layers", "1,2", "--steps", "3"])
    perplexity = {name: float(row[1]) for name, *row in rows}
    assert perplexity["linear"] != perplexity["linear, one for a run"] != perplexity["removed"]


def test_fitted_maps_come_closer_to_the_layers_than_leaving_them_out(small_problem):
    backbone = copy.deepcopy(small_problem.backbone)
    model = AdaptedModel(backbone, small_problem.head, small_problem.task)
    maps = recovery.fit_maps(model, small_problem.splits.train[:16])
    masks = np.eye(len(maps), dtype=bool)
    errors = []
    for given in (maps, None):
        recovery.put_maps(backbone.vlp, given)
        evaluator = problem_from_model(model, small_problem.splits, backbone.origin.config).evaluator
        examples = small_problem.splits.reward[:8]
        full = evaluator.losses(~masks[:1] & masks[:1], examples)
        errors.append(np.abs(evaluator.losses(masks, examples) - full).mean())
    assert errors[0] < errors[1] / 2
