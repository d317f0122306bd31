"""`adapt compare` of agents that choose the layers to remove: the table, and the experiment on a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.compare.record import FULL_MODEL, Trial, comparison_table
from das_gym.adapt.run_commands import compare as ex
from das_gym.adapt.shrinking import comparing, measuring
from das_gym.adapt.shrinking.comparing import RemovalRows
from das_gym.agents.ask_tell.heuristics import Heuristic

from das_gym.commands.recorded import RunError
from das_gym.files import read_json
from das_gym.problem.budget import Masks
from tests.models.transformers import tiny


def trial(method: str, seed: int, loss: float, after: float | None = None) -> Trial:
    found = {"test": 0.5 + seed / 100, "test_loss": loss, "low": 0.4, "high": 0.6}
    if after is not None:
        found = {"test": 0.7, "test_loss": after, "low": 0.6, "high": 0.8, "removed": 0.5, "removed_loss": loss}
    return Trial(method, seed, mask=(0, 1), drawn="■□", evaluations=20, macs=3, macs_full=4, **found)


FULL = trial(FULL_MODEL, 0, 0.1)


def test_comparison_table_has_the_columns_that_have_cells():
    table = comparison_table("", {FULL_MODEL: [FULL], "bayes": [trial("bayes", 0, 0.5, 0.2)]})
    columns = ["unrecovered loss", "unrecovered test, %", "test loss", "test, %", "layers"]
    assert list(table.columns[-5:]) == columns
    assert table.rows[0][-5:] == ("-", "-", "0.1000", "50.0 (40.0..60.0)", "■□")
    assert table.rows[1][-5:] == ("0.5000", "50.0", "0.2000", "70.0 (60.0..80.0)", "■□")
    alone = comparison_table("", {FULL_MODEL: [FULL], "bayes": [trial("bayes", 0, 0.5)]}, ["uniform has no result: why"])
    assert not {"unrecovered loss", "learning rate", "times as fast"} & {*alone.columns}
    assert alone.notes[-1] == "uniform has no result: why"


def test_comparison_table_has_the_interval_over_seeds():
    table = comparison_table("", {"random": [trial("random", seed, 0.4) for seed in (0, 1, 2)]})
    assert table.rows[0][-3:-1] == ("0.4000 ± 0.0000", "51.0 ± 2.5 (3)")  # t of 2 degrees, 4.30, times 1 / sqrt(3)


@pytest.fixture(scope="module")
def given(tiny_llava, tmp_path_factory) -> dict[str, Any]:
    """Two methods to compare on a tiny model."""
    return {
        **tiny_llava,
        "model": "VLM",
        "task": "answering",
        "runs_dir": str(tmp_path_factory.mktemp("runs")),
        "skip_num": 1,
        "evaluations": 4,
        "device": "cpu",
        "recovery": {"steps": 2},
        "methods": ["bayes", "uniform"],
    }


@pytest.mark.slow
def test_compare_on_a_tiny_model(given, capsys):
    run = ex.run(given)
    folder = Path(given["runs_dir"]) / "1"
    record = read_json(folder / "compare.json")
    full, *methods = record["trials"]
    assert (full["variant"], sum(full["mask"])) == (FULL_MODEL, 0)
    assert [trial["variant"] for trial in methods] == ["bayes", "uniform"]
    assert all(sum(trial["mask"]) == 1 and trial["removed"] is not None for trial in methods)
    assert run.result == max(trial["test"] for trial in methods)
    printed = capsys.readouterr().out
    assert "llava, skip_num=1, recover=lora, 2 steps, 6 test examples" in printed


@pytest.mark.slow
def test_a_resumed_compare_measures_no_model_again(given, tmp_path, monkeypatch):
    titles = []
    score_model = measuring.score_model
    monkeypatch.setattr(measuring, "score_model", lambda *args: titles.append(args[3]) or score_model(*args))

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "make_teacher", stop)
        with pytest.raises(KeyboardInterrupt):
            ex.run({**given, "methods": ["uniform"], "runs_dir": str(tmp_path)})
    ex.run({"resume": 1, "runs_dir": str(tmp_path)})
    assert titles == [FULL_MODEL, "uniform"]
    assert not list((tmp_path / "1").glob("*scored.json"))


@pytest.mark.slow
def test_compare_measures_a_mask_of_two_methods_once(given, tmp_path, monkeypatch):
    """With half of the MACs of attentions and MLPs apart; the rules of two layers differ."""
    measured, measure = [], RemovalRows._measure
    monkeypatch.setattr(RemovalRows, "_measure", lambda self, trial: measured.append(trial.mask) or measure(self, trial))
    settings = {name: value for name, value in given.items() if name != "skip_num"}
    settings |= {"methods": ["leave_one_out", "greedy", "uniform"], "macs_saved": 0.01, "units": "sublayers"}
    ex.run({**settings, "runs_dir": str(tmp_path / "runs")})
    lines = read_json(tmp_path / "runs" / "1" / "compare.json")["trials"][1:]
    assert len({tuple(line["mask"]) for line in lines}) == len(measured) - 1 < len(lines)
    assert all(1 - line["macs"] / line["macs_full"] >= 0.01 and line["removed"] is not None for line in lines)
    assert all(line["kv_saved"] == sum(line["mask"][::2]) / 4 for line in lines)


@pytest.mark.slow
def test_compare_repairs_in_closed_form(given, tmp_path, capsys):
    settings = {"recover": "linear", "methods": ["random"], "search": {"reward_examples": 4}}
    ex.run({**given, **settings, "runs_dir": str(tmp_path / "runs")})
    _, row = read_json(tmp_path / "runs" / "1" / "compare.json")["trials"]
    assert read_json(tmp_path / "runs" / "1" / "random_0" / "search.json")["env_kwargs"]["reward_examples"] == 4
    assert row["test_loss"] != row["removed_loss"]
    assert "skip_num=1, recover=linear, 6 test examples" in capsys.readouterr().out


class WholeTower(Heuristic):
    """Skips the last layers, those of the vision tower if the model has one."""

    def best(self) -> Masks:
        return self.space.top(np.arange(self.n_layers, dtype=float))


@pytest.mark.slow
def test_compare_leaves_out_methods_whose_masks_cannot_be_removed(given, tmp_path):
    tiny.save("qwen2_5_vl", tmp_path / "model")
    tower = f"{__name__}:WholeTower"
    more = {"checkpoint": str(tmp_path / "model"), "vision": True, "skip_num": 3, "recover": "none"}
    settings = {**given, **more, "methods": [tower, "random"], "runs_dir": str(tmp_path / "runs")}
    ex.run(settings)
    record = read_json(tmp_path / "runs" / "1" / "compare.json")
    told = "all 3 vision layers"
    failures = {trial["variant"]: trial["failure"] for trial in record["trials"]}
    assert told in failures.pop(tower)
    assert failures == {FULL_MODEL: "", "random": ""}
    with pytest.raises(RunError, match=f"no method found a mask .*{told}"):
        ex.run({**settings, "methods": [tower]})


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ({"methods": ["bayes", "bayes"]}, "`methods`"),
        ({"skip_num": 99}, "skip_num"),
        ({"methods": ["bayes", "random", "bays"]}, "unknown agent 'bays'; did you mean 'bayes'"),
    ],
)
def test_compare_rejects_wrong_settings(given, tmp_path, update, told):
    with pytest.raises((RunError, FileNotFoundError), match=told):
        ex.run({**given, "runs_dir": str(tmp_path), **update})
    assert not list(tmp_path.iterdir())
