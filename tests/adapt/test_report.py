import base64
import dataclasses
import io
import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.evaluate import Evaluation
from das_gym.adapt.finetuning import without_layers
from das_gym.adapt.report import (
    BASELINE,
    EXAMPLES_FILE,
    FULL_MODEL,
    SUBNET,
    THUMBNAIL_SIDE,
    TunedModelResult,
    compare_models,
    read_example_answers,
    subnet_report,
    write_example_answers,
)
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.drawing.report import WIDTH, RunReport
from das_gym.files import read_json, write_json
from das_gym.intervals import difference_interval
from das_gym.problem.config import ProblemConfig
from das_gym.problem.latency import Speedup, Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs
from das_gym.tasks.nlvr2 import NLVR2Example, NLVR2Task

TASK = NLVR2Task(processor=None)  # only text and images are required


def evaluation(right: int) -> Evaluation:
    """Of 1,000 examples, of which the first ones are answered right."""
    metrics = [1.0] * right + [0.0] * (1000 - right)
    return Evaluation(right / 1000, "accuracy", 0.1, {"accuracy": right / 1000, "loss": 0.1}, 1000, metrics=metrics)


BASE = TunedModelResult(BASELINE, 900, 27_470_336, 0.0, (0, 0), (), 60, evaluation(819), Spread(2.0, 1.9, 2.1))
FULL = TunedModelResult(
    FULL_MODEL,
    *(1_000, 29_020_000, -0.056412, (0, 0), (), 90, evaluation(975)),
    *(Spread(2.2, 2.1, 2.3), Speedup(0.91, 0.88, 0.93), True),
)
SUB = TunedModelResult(
    SUBNET,
    *(800, 21_825_024, 0.205506, (1, 0), ("text.1",), 80, evaluation(969)),
    *(Spread(1.6, 1.5, 1.7), Speedup(1.25, 1.2, 1.3)),
)
ROWS = {SUBNET: SUB, FULL_MODEL: FULL, BASELINE: BASE}


def report(rows: dict[str, TunedModelResult]) -> RunReport:
    layers = [SimpleNamespace(name=name, stage=0) for name in ("text.1", "image.1")]
    subnet: Any = SimpleNamespace(backbone=SimpleNamespace(vlp=SimpleNamespace(layers=layers)))
    return subnet_report(rows, ProblemConfig(), "fine-tuned", subnet)


def test_conclusion_says_what_a_small_skipped_layer_adds():
    rows = {**ROWS, SUBNET: dataclasses.replace(SUB, macs_saved=-0.0535)}
    assert "Skipping text.1 adds 5.35 % of the baseline's MACs" in report(rows).table.notes[-1]


def test_conclusion_can_be_recomputed_from_the_table():
    told = report(ROWS)
    table, said = {row[0]: row[1:] for row in told.table.rows}, told.table.notes[-1]
    macs, latency = ([float(cell.split()[0]) for cell in table[name]] for name in ("MACs an example, M", "latency, ms"))
    assert f"saves {100 * (1 - macs[2] / macs[0]):.2f} % of the baseline's MACs" in said
    assert f"runs {latency[0] / latency[2]:.2f} (1.20 to 1.30) times as fast as the baseline" in said
    assert table["times as fast"] == ("-", "0.91 (0.88..0.93)", f"{latency[0] / latency[2]:.2f} (1.20..1.30)")
    assert table["MACs saved, %"] == ("0.00", *(f"{100 * (1 - own / macs[0]):.2f}" for own in macs[1:]))
    baseline, full, subnet = table["accuracy on test, %"]
    assert baseline == "81.9"
    low, high = (100 * end for end in difference_interval(np.array([0.0] * 994 + [-1.0] * 6)))
    interval = f"(95 % interval of the difference: {low:+.1f} to {high:+.1f} points)"
    assert f"it scores {subnet} % accuracy on test against {full} % for the full model with adapters {interval}" in said
    assert told.facts == {"skips": "text.1", "accuracy on test, %": "96.90", "MACs saved, %": "20.6"}


def test_table_names_baseline_and_shipped_weights_and_fits(capsys):
    slow = dataclasses.replace(FULL, latency_ms=Spread(98765.4, 98700.0, 98800.0), parameters=10**9)
    table = report({**ROWS, FULL_MODEL: slow}).table
    table.print()
    assert all(len(line) <= WIDTH for line in capsys.readouterr().out.splitlines())
    assert table.columns == ("", "baseline", "full model with adapters", "subnet")
    assert ("trainable parameters", "60", "90", "80") in table.rows
    assert ("latency, ms", "2 (1.9..2.1)", "98765 (98700..98800)", "1.6 (1.5..1.7)") in table.rows
    assert "Full model with adapters: trained weights from the package." in table.notes
    untrained = dataclasses.replace(BASE, evaluation=None, trainable_parameters=0)
    rows = {row[0]: row[1:] for row in report({**ROWS, BASELINE: untrained}).table.rows}
    assert rows["accuracy on test, %"][0] == rows["trainable parameters"][0] == "-"


def test_measure_latency_takes_turns():
    order: list[str] = []
    times = measure_latency({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, blocks=3, runs=2)
    assert "".join(name for name, _ in itertools.groupby(order)) == "ababab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    (milliseconds,) = measure_latency({"a": lambda: time.sleep(0.004)}, blocks=1, runs=2)["a"]
    assert milliseconds >= 4


def test_speedup_is_the_ratio_of_medians_with_its_interval():
    of, over = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])
    assert speedup(of, over) == Speedup(2.0, 2.0, 2.0)
    assert Spread.from_values(np.arange(5.0)) == Spread(2.0, 1.0, 3.0)
    noise = np.random.default_rng(1).normal(10, 1, (2, 15))
    found = speedup(*noise)
    assert found.ratio == np.median(noise[1]) / np.median(noise[0])
    assert found.low < 1 < found.high
    assert not found.is_measurable
    assert speedup(noise[0], 2 * noise[1]).is_measurable


@pytest.mark.parametrize(("names", "named"), [((SUBNET, FULL_MODEL), "full model with adapters"), ((SUBNET,), "subnet")])
def test_model_at_chance_after_training_is_named(small_problem, monkeypatch, names, named):
    monkeypatch.setattr(type(small_problem.task), "chance", lambda task, examples: 1.0)
    model = AdaptedModel(small_problem.backbone, small_problem.head, small_problem.task)
    models = dict.fromkeys((*names, BASELINE), model)
    with pytest.warns(UserWarning, match=f"^the {named} is no better than chance.* test examples"):
        compare_models(models, small_problem.splits, untrained=[BASELINE])


def test_costs_of_the_full_model_are_those_of_the_subnet(small_problem):
    mask = np.arange(6) < 2
    model = AdaptedModel(small_problem.backbone, small_problem.head, small_problem.task)
    counted, known = example_costs(without_layers(model, mask), small_problem.splits), small_problem.costs
    assert (counted.macs(mask), counted.macs_full) == (known.macs(mask), known.macs_full)
    assert counted.macs(~mask) == known.macs(~mask)


@pytest.fixture
def examples(tmp_path) -> list[NLVR2Example]:
    images = []
    for color in ("red", "blue"):
        images.append(ImageFile(tmp_path / f"{color}.png"))
        Image.new("RGB", (2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE), color).save(images[-1].path)
    return [NLVR2Example(f"{i}", f"sentence {i}", (images[0], images[1]), i % 2 == 0) for i in range(20)]


def test_examples_round_trip(examples, tmp_path):
    said = {"full model with adapters": ["True"] * 20, "subnet": ["True"] * 17 + ["False"] * 3}
    write_example_answers(tmp_path, TASK, examples, said)
    told = read_example_answers(tmp_path)
    assert told.models == ["full model with adapters", "subnet"]
    assert told.about == "12 of 20 questions; the models differ on 3, which come first"
    assert [(question.text, question.reference, *answers) for question, answers in told.rows][2:4] == [
        ("sentence 19", "False", "True", "False"),
        ("sentence 0", "True", "True", "True"),
    ]
    left, right = told.rows[0][0].images
    with Image.open(io.BytesIO(base64.b64decode(left.partition(",")[2]))) as picture:
        assert picture.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)
        assert picture.getpixel((5, 5))[0] > 200
    assert left != right


def test_damaged_file_is_named(examples, tmp_path):
    write_example_answers(tmp_path, TASK, examples[:2], {"full model with adapters": ["True"] * 2, "subnet": ["True"] * 2})
    kept = read_json(tmp_path / EXAMPLES_FILE)
    write_json(tmp_path / EXAMPLES_FILE, kept | {"rows": [["q", ["a", "b"]]]})
    with pytest.raises(ValueError, match=r"examples.json is damaged .*remove it for a report without examples"):
        read_example_answers(tmp_path)
