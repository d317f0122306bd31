"""Run the commands as users do, on a small data set."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt import load_subnet
from das_gym.adapt.commands import PROGRAM
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import new_subnet
from das_gym.adapt.run_report import run_report

from das_gym.models.base import fingerprint
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits
from das_gym.shapes.vqa import write_shapes
from tests.small_world import small_world

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
MASK = [1, 0, 0, 0, 0, 1]
QUICK = ("train.steps=4", "train.batch_size=8")


def words_of(settings: dict[str, str]) -> list[str]:
    """Settings as they are typed."""
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, small_kwargs) -> Path:
    """The run folders of `python -m adapt`, which searches first."""
    folder = tmp_path_factory.mktemp("adapted")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = PROGRAM.run(["with", *words_of(small_kwargs), *QUICK, "search.evaluations=9"])
    assert code == 0, printed.getvalue()
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def test_adapt_searches_fine_tunes_and_compares(adapted):
    search = json.loads((adapted / "runs/1/search.json").read_text())
    record = json.loads((adapted / "runs/1/adapt.json").read_text())
    subnet, full, baseline = record["models"]
    assert subnet["mask"] == search["mask"]
    assert sum(subnet["mask"]) == 4
    assert subnet["skipped_layers"] == search["skipped_layers"]
    assert subnet["macs"] == search["macs"]
    assert full["mask"] == [0] * 6
    assert full["macs_saved"] < 0 < subnet["macs_saved"]
    assert subnet["parameters"] < full["parameters"]
    assert not any(model["from_package"] for model in record["models"])  # other settings than the package's weights
    assert baseline["macs"] == search["macs_full"]
    assert baseline["macs_saved"] == 0
    assert baseline["trainable_parameters"] < subnet["trainable_parameters"]
    assert 0 < baseline["evaluation"]["metric"] <= 1
    assert baseline["latency_ms"][0] > 0
    assert baseline["speedup"] is None
    ratio, low, high = subnet["speedup"]
    assert ratio == pytest.approx(baseline["latency_ms"][0] / subnet["latency_ms"][0])
    assert low <= ratio <= high
    assert set(record["versions"]) >= {"torch", "transformers", "gymnasium"}


def in_this_process(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert PROGRAM.run(words) == 0
    return capsys.readouterr().out


def test_answers_are_kept_and_written_again(adapted, small_kwargs, tmp_path, capsys):
    """Of a run, as VQA's server takes them; the same again by `evaluate` and `predict`, with the metric of the run."""
    run, out = adapted / "runs/1", tmp_path / "answers.json"
    kept = json.loads((run / "answers_subnet.json").read_text())
    assert kept
    assert set(kept[0]) == {"question_id", "answer"}
    words = ["with", f"run={run}", f"data_root={small_kwargs['data_root']}", "device=cpu"]
    printed = in_this_process(["evaluate", *words, f"out={out}"], capsys)
    assert json.loads(out.read_text()) == kept
    metric = json.loads((run / "adapt.json").read_text())["models"][0]["evaluation"]["metric"]
    assert f"{100 * metric:.2f}" in printed
    assert "at most" not in printed  # the vocabulary has every answer
    in_this_process(["predict", *words, "split=val2014", f"out={tmp_path / 'val.json'}", "limit=5"], capsys)
    assert len(json.loads((tmp_path / "val.json").read_text())) == 5
    assert PROGRAM.run(["predict", *words, f"out={out}"]) == 1
    assert "`out` exists" in capsys.readouterr().err
    assert PROGRAM.run(["predict", *words]) == 1
    assert "`out` is missing" in capsys.readouterr().err


def test_adapter_file_is_small_and_reloads_to_equal_logits(adapted, small_kwargs, mini_folder):
    path = adapted / "runs/1/adapter.safetensors"
    assert path.stat().st_size < (mini_folder / "model.safetensors").stat().st_size / 4
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    evaluations = [evaluate(load_subnet(where), splits.test, "again") for where in (path, path.parent)]
    record = json.loads((adapted / "runs/1/adapt.json").read_text())["models"][0]["evaluation"]
    assert evaluations[0] == evaluations[1]
    assert evaluations[0].metric == record["metric"]
    assert evaluations[0].loss == pytest.approx(record["loss"], rel=1e-6)


def test_adapt_shows_the_full_model_once_without_adapters(run_here, tmp_path, shapes_folder):
    kwargs = small_world(tmp_path / "plain", shapes_folder, bottleneck=0, skip_bottleneck=0)
    code, printed = run_here("with", *words_of(kwargs), *QUICK, f"mask={MASK}", "test_examples=5")
    assert code == 0, printed
    record = json.loads((tmp_path / "runs/1/adapt.json").read_text())
    assert [model["name"] for model in record["models"]] == ["subnet", "baseline"]
    assert [model["evaluation"]["examples"] for model in record["models"]] == [5, 5]


def test_fine_tuning_keeps_frozen_weights_bit_identical(adapted, small_kwargs):
    before = load_backbone(ProblemConfig(**small_kwargs))
    after = load_subnet(adapted / "runs/1").backbone
    assert after.base == before.base == fingerprint(before.vlp)
    trained = Adaptation.load(adapted / "runs/1/adapter.safetensors").tensors
    old = before.vlp.state_dict()
    for name, tensor in after.vlp.state_dict().items():
        if f"vlp.{name}" not in trained:
            assert torch.equal(tensor, old[name])


def test_supernet_of_other_peoples_data(run_here, tmp_path, small_kwargs):
    """Other words, other answers, images of another size: from supernet to adapted model."""
    data = write_shapes(tmp_path / "data", seed=8, train_scenes=12, val_scenes=24)
    from PIL import Image

    for path in data.rglob("*.jpg"):
        Image.open(path).resize((150, 130)).save(path)
    for path in data.glob("*.json"):
        path.write_text(
            path.read_text().replace("red", "rot").replace("what color", "welche Farbe 🐈").replace('"yes"', '"ja"')
        )
    model = words_of({name: small_kwargs[name] for name in ("checkpoint", "tokenizer")})
    code, printed = run_here("supernet", "with", *model, f"data_root={data}", "train.steps=3", "train.batch_size=500")
    assert code == 0, printed
    supernet = tmp_path / "runs/1/supernet.safetensors"
    assert "ja" in Adaptation.load(supernet).answers
    next_one = printed[printed.index("das-agents with meter_vqa") :]
    assert f"data_root={data}" in next_one
    assert "supernet=runs/1/supernet.safetensors" in next_one
    code, printed = run_here("with", *model, f"data_root={data}", f"supernet={supernet}", *QUICK, "search.evaluations=6")
    assert code == 0, printed
    assert (tmp_path / "runs/2/adapt.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("with", "search_run=7"), "no run 7"),
        (("with", "train.stepz=3"), "did you mean 'steps'"),
        (("evaluate", "with", "run=a/b"), "hf download a/b --local-dir FOLDER"),
        (("supernet", "with", "train.steps=1", "--unobserved"), "leave --unobserved"),
        (("supernet", "with", "out=/proc/x"), "`out` is not writable"),
    ],
)
def test_user_error_is_printed_without_a_traceback(run_here, tmp_path, arguments, says):
    code, printed = run_here(*arguments)
    assert code == 1
    assert says in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("adapt.json"))


def test_adapters_of_one_mask_are_no_supernet(adapted, small_kwargs):
    problem = ProblemConfig(**{**small_kwargs, "supernet": str(adapted / "runs/1/adapter.safetensors")})
    with pytest.raises(ValueError, match="holds the adapters of one mask"):
        new_subnet(problem, np.zeros(6, bool))


def test_adapt_leaves_references_out(run_here, small_kwargs, tmp_path):
    code, printed = run_here("with", *words_of(small_kwargs), *QUICK, f"mask={MASK}".replace(" ", ""), "references=False")
    assert code == 0, printed
    run = tmp_path / "runs/1"
    subnet, baseline = json.loads((run / "adapt.json").read_text())["models"]
    assert (subnet["name"], baseline["name"]) == ("subnet", "baseline")
    assert (baseline["evaluation"], baseline["trainable_parameters"]) == (None, 0)
    assert subnet["speedup"][0] == pytest.approx(baseline["latency_ms"][0] / subnet["latency_ms"][0])
    assert "full model" not in printed
    assert not (run / "full_model_adapter.safetensors").exists()
    assert json.loads((run / "examples.json").read_text())["models"] == ["subnet"]
    assert run_report(run).table.columns[1:] == ("baseline", "subnet")
