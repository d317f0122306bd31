from __future__ import annotations

import errno
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from das_gym.agents.commands import PROGRAM
from das_gym.agents.past_runs import RunsSettings, past_runs

from das_gym.files import write_json
from das_gym.locks import lock_folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    def add(run: int, command: str, result: float | None, status: str = "COMPLETED", **config) -> None:
        began = {
            "experiment": {"name": command},
            "result": result,
            "status": status,
            "start_time": f"2026-11-2{run}T10:00:07.5",
        }
        write_json(tmp_path / str(run) / "run.json", {**began, "experiment": {"name": command}})
        write_json(tmp_path / str(run) / "config.json", config)

    add(1, "agents", 0.5, env_id="DAS-METER-VQA-Tabular-v0", agent="bandit")
    add(2, "agents", 0.7, env_id="DAS-ViLT-VQA-v0", agent="maskable_ppo")
    add(3, "agents", None, "INTERRUPTED", env_id="DAS-METER-VQA-v0", agent="bandit")
    add(4, "adapt shrink", 0.9, model="VLM", task="answering")
    add(5, "agents", None, "FAILED", env_id="synthetic:Mine-v0", agent="bandit")
    write_json(tmp_path / "2" / "search.json", {"macs_saved": 0.125})
    write_json(tmp_path / "4" / "shrink.json", {"models": [{"macs_saved": 0.0}, {"macs_saved": 0.2}]})
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({}, [3, 1, 5, 2, 4]),
        ({"order": "newest"}, [5, 4, 3, 2, 1]),
        ({"agent": "bandit"}, [3, 1, 5]),
        ({"env": "meter_vqa"}, [3, 1]),
        ({"env": "table"}, [1]),
        ({"command": "adapt shrink"}, [4]),
        ({"status": "stopped"}, [3]),
        ({"agent": "bandit", "status": "failed"}, [5]),
    ],
)
def test_order_and_filters(runs: Path, asked: dict, ids: list[int]):
    assert [run.id for run in past_runs(RunsSettings(runs_dir=str(runs), **asked))] == ids


def test_past_runs_does_not_wait_for_a_pipe(runs: Path):
    (runs / "1" / "run.json").unlink()
    os.mkfifo(runs / "1" / "run.json")
    told = {run.id: run.status for run in past_runs(RunsSettings(runs_dir=str(runs)))}
    assert (told[1], told[2]) == ("damaged", "done")


@pytest.mark.parametrize(
    ("lock", "host", "age", "status"),
    [
        ("held", "here", 3600, "running"),
        ("held", "otherhost", 3600, "running"),
        ("free", "here", 1, "died"),
        ("free", "otherhost", 1, "running"),
        ("free", "otherhost", 3600, "died"),
        ("missing", "here", 1, "died"),
        ("unknown", "here", 1, "running"),
        ("unknown", "here", 3600, "died"),
    ],
)
def test_status_of_a_run_recorded_as_running(
    lock: str, host: str, age: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beat = (datetime.now(UTC) - timedelta(seconds=age)).replace(tzinfo=None).isoformat()
    run = {"experiment": {"name": "adapt"}, "status": "RUNNING", "start_time": beat, "heartbeat": beat}
    host = platform.node() if host == "here" else "another"
    write_json(tmp_path / "1" / "run.json", {**run, "host": {"hostname": host}})
    if lock != "missing":
        held = lock_folder(tmp_path / "1")
        if lock != "held":
            held.release()
    if lock == "unknown":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    (past_run,) = past_runs(RunsSettings(runs_dir=str(tmp_path)))
    assert past_run.status == status


def test_died_run_is_listed_with_its_resume_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = {"experiment": {"name": "adapt shrink"}, "status": "RUNNING", "start_time": "2026-11-23T10:00:07"}
    for number, config in ((1, {"resume": None}), (2, {})):
        write_json(tmp_path / str(number) / "run.json", run)
        write_json(tmp_path / str(number) / "config.json", config)
    assert PROGRAM.run(["runs", "with", f"runs_dir={tmp_path}", "status=died"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "Resume it" in line]
    assert lines == [f"run 1 died. Resume it with: python -m adapt shrink with resume=1 runs_dir={tmp_path}"]


def test_past_runs_are_printed_in_80_columns(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert PROGRAM.run(["runs", "with", f"runs_dir={runs}", "limit=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert next(line for line in lines if "maskable_ppo" in line).split() == [
        "2", "agents", "maskable_ppo", "vilt_vqa", "0.7000", "12.5", "%", "done", "11-22", "10:00",
    ]  # fmt: skip
    assert lines[-1] == "1 more: limit=5 shows all"
    assert PROGRAM.run(["runs", "with", f"runs_dir={runs}", "agent=unknown"]) == 0
    assert capsys.readouterr().out == f"no such run in {runs}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("status=FAILED", "did you mean 'failed'"),
        ("order=x", "best, newest"),
        ("runs_dir=/none", "run something first"),
    ],
)
def test_invalid_settings_are_rejected(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert PROGRAM.run(["runs", "with", words]) == 1
    assert says in capsys.readouterr().err
