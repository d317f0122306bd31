"""`python -m adapt compare` on a small model: its table, and resuming a stopped run."""

import dataclasses
from functools import partial
from typing import Any

import pytest
from das_gym.adapt.compare import training
from das_gym.adapt.compare.record import Trial, best_trials, chosen_trials, comparison_table, kept_file, kept_trial, verdict
from das_gym.adapt.compare.settings import CompareSettings
from das_gym.adapt.run_commands import check_comparison

from das_gym.files import read_json
from das_gym.problem.latency import measure_latency

METHODS = '["lora","das"]'
QUICK = ("train.steps=2", "train.batch_size=4", "seeds=2", "skip_nums=[2]", "learning_rates=[1e-3,1e-2]", "test_examples=6")


def words(small_kwargs: dict[str, str]) -> list[str]:
    given = [f"{name}={value}" for name, value in small_kwargs.items()]
    return ["compare", "with", *given, f"methods={METHODS}", *QUICK, "search.evaluations=6"]


@pytest.mark.long
def test_compare_searches_masks_and_chooses_rates(run_here, small_kwargs, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "measure_latency", partial(measure_latency, blocks=1, runs=1))
    code, told = run_here(*words(small_kwargs))
    assert code == 0, told
    whole = read_json(tmp_path / "runs/1/compare.json")
    assert "8 trainings; reduce train.steps" in told
    assert "LoRA: accuracy on the reward split: " in told
    assert [row["method"] for row in whole["rows"]] == ["LoRA", "DAS, 2 skipped", "DAS, 2 at random"]
    assert all(row["test, %"].endswith(" (2)") for row in whole["rows"])
    assert {tuple(t["mask"]) for t in whole["trials"] if t["variant"] == "das_2"} == {
        tuple(read_json(tmp_path / "runs/1/search_2/search.json")["mask"])
    }
    assert not list((tmp_path / "runs/1").glob("*.pt"))
    for variant in ("lora", "das_2"):  # a learning rate that is worse than an earlier one is not measured on the test split
        tried = [trial for trial in whole["trials"] if (trial["variant"], trial["seed"]) == (variant, 0)]
        merits = [(trial["reward"], -trial["reward_loss"]) for trial in tried]
        is_best = [all(merit > earlier for earlier in merits[:place]) for place, merit in enumerate(merits)]
        assert [trial["test"] is not None for trial in tried] == is_best
    kept = sorted(path.name for path in (tmp_path / "runs/1").glob("*.safetensors"))
    assert kept == ["das_2.safetensors", "lora.safetensors", "random_2.safetensors"]


@pytest.mark.slow
def test_compare_keeps_models_for_evaluate_predict_export_and_report(run_here, small_kwargs, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "measure_latency", partial(measure_latency, blocks=1, runs=1))
    given = [f"{name}={value}" for name, value in small_kwargs.items()]
    quick = ("train.steps=2", "train.batch_size=4", "seeds=2", "learning_rates=[1e-2]", 'methods=["lora","adapter"]')
    code, told = run_here("compare", "with", *given, *quick)
    assert code == 0, told
    assert "the best model of each row is kept there, too; one of them: " in told
    record = read_json(tmp_path / "runs/1/compare.json")
    for trial in (best_of(record, method) for method in ("lora", "adapter")):
        code, told = run_here("evaluate", "with", "run=1", f"method={trial['variant']}")  # on the data of the run
        assert code == 0, told
        assert f"loss {trial['test_loss']:.4f} nats" in told
    assert run_here("predict", "with", "run=1", "method=lora", "out=answers.json")[0] == 0
    assert read_json(tmp_path / "answers.json")
    code, told = run_here("evaluate", "with", "run=1")
    assert code == 1
    assert "`method` is missing" in told
    code, told = run_here("export", "with", "run=1", "method=lora", "out=lora")
    assert code == 0, told
    card = (tmp_path / "lora/README.md").read_text()
    assert "# METER, fine-tuned, for vqa" in card
    assert "A row of `python -m adapt compare`: LoRA, learning rate 0.01." in card
    assert f"| accuracy on test, % | {100 * best_of(record, 'lora')['test']:.1f} |" in card
    code, told = run_here("export", "with", "run=1", "method=adapter", "out=adapter")
    assert code == 1
    assert "method=adapter cannot be exported" in told
    assert run_here("report", "1")[0] == 0
    assert "Comparison of " in (tmp_path / "runs/1/report.html").read_text()
    (tmp_path / "runs/1/compare.json").write_text('{"methods": []}')
    code, told = run_here("evaluate", "with", "run=1", "method=lora")
    assert code == 1
    assert "is not a run of `das-adapt compare`" in told


def best_of(record: dict[str, Any], row: str) -> dict[str, Any]:
    """The training of a row that is best on the reward split."""
    done = [trial for trial in record["trials"] if trial["variant"] == row]
    return max(done, key=lambda trial: (trial["reward"], -trial["reward_loss"]))


def test_kept_models(tmp_path):
    done = [Trial("a", 0, 1.0), trial("a", 2.0, 0, 0.5, test=0.9), trial("a", 2.0, 1, 0.6, test=0.1)]
    assert best_trials(done) == [done[2]]  # by the reward split
    record = {"trials": [dataclasses.asdict(each) for each in done], "metric": "accuracy"}
    with pytest.raises(ValueError, match="unknown method"):
        kept_trial(tmp_path, record, "a")
    kept_file(tmp_path, "a").write_bytes(b"x")
    assert kept_trial(tmp_path, record, "a") == done[2]


def test_compare_rejects_wrong_settings_before_a_search(run_here, small_kwargs, tmp_path):
    for given, told in (
        ("methods=['lorra']", "unknown methods 'lorra'"),
        ("skip_nums=[7]", "`skip_nums` is out of range: got [7], expected 0..6"),
        ("method_settings={'lora':{'rank':0}}", "`rank` is out of range"),
        ("train.itm_weight=0.5", "vqa has no image-text-matching loss"),
    ):
        code, said = run_here(*words(small_kwargs), given)
        assert code == 1
        assert told in said
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/search.json"))


def test_wrong_settings_are_named_before_the_model_is_loaded(run_here, tmp_path):
    with pytest.raises(ValueError, match=r"`skip_nums` is out of range: got \[13\], expected 0\.\.12"):
        check_comparison(CompareSettings(skip_nums=(13,)))
    check_comparison(CompareSettings(methods=("lora",), skip_nums=(13,)))  # no row skips layers
    (tmp_path / "config.json").write_text("{}")  # no model
    (tmp_path / "model.safetensors").write_bytes(b"")
    _, told = run_here("compare", "with", f"checkpoint={tmp_path}", "method_settings.lora.rank=0")
    assert "`rank` is out of range" in told


def trial(variant: str, rate: float, seed: int, reward: float, loss: float = 1.0, **more: Any) -> Trial:
    return Trial(variant, seed, rate, reward, loss, 10, 20, 1.0, variant, (0, 1), **more)


def measured(variant: str, seed: int, test: float, macs: int) -> Trial:
    return trial(variant, 1e-3, seed, 0.5, test=test, macs=macs, macs_full=100, latency=(2.0, 1.0, 3.0), speedup=(1.5, 1, 2))


def test_table_and_verdict_by_hand():
    variants = [variant.key for variant in training.method_variants(["adapter", "das"], {}, {1: (0, 1)})]
    tests = {"adapter": (0.80, 0.80, 0.80), "das_1": (0.78, 0.79, 0.80), "random_1": (0.70, 0.73, 0.76)}
    done = [measured(key, seed, score, 90) for key, scores in tests.items() for seed, score in enumerate(scores)]
    done.append(trial("das_1", 1e-2, 0, 0.1, test=0.9, macs=90, macs_full=100))  # another rate, worse on the reward split
    chosen = chosen_trials(variants, done)
    assert {key: tuple(trial.test for trial in own) for key, own in chosen.items()} == tests
    assert comparison_table("", chosen).rows[1][-4:-1] == ("10.0", "1.50 (1.00..2.00)", "1.0000 ± 0.0000")
    assert comparison_table("", chosen).rows[1][-1] == "79.0 ± 2.5 (3)"
    assert chosen_trials(variants, []) == {}
    assert verdict(chosen) == [  # t of 2 degrees, 4.30, times 1.0 and 2.0 / sqrt(3)
        "das_1: 1.0 points behind adapters without skipping, 95 % interval of the difference -3.5 to 1.5.",
        "das_1: 6.0 points ahead of random masks of as many layers, 95 % interval of the difference 1.0 to 11.0.",
    ]
    few = {"das_1": chosen["das_1"], "random_1": chosen["das_1"][1:]}
    assert "; an interval needs 3 seeds." in verdict(few)[0]
