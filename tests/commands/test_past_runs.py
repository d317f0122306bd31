import errno
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from das_gym.agents.commands import PROGRAM

from das_gym.commands.past_runs import past_runs
from das_gym.commands.runs import lock_folder
from das_gym.files import read_json, write_json


@pytest.fixture
def runs(tmp_path) -> Path:
    def add(run: int, command: str, result: float | None, status: str = "COMPLETED", **config) -> None:
        started = {"status": status, "start_time": f"2026-11-2{run}T10:00:07.5"}
        write_json(tmp_path / str(run) / "run.json", {"experiment": {"name": command}, "result": result, **started})
        write_json(tmp_path / str(run) / "config.json", config)

    add(1, "agents", 0.5, env_id="DAS-METER-VQA-Tabular-v0", agent="bandit")
    add(2, "agents", 0.7, env_id="DAS-ViLT-VQA-v0", agent="maskable_ppo")
    add(3, "agents", None, "INTERRUPTED", env_id="DAS-METER-VQA-v0", agent="bandit\x1b[2J")
    add(4, "adapt shrink", 0.9, problem={"model": "VLM", "task": "answering"})
    return tmp_path


def test_past_runs_names_the_search_that_a_run_followed(runs):
    config = {"problem": {"model": "METER", "task": "vqa"}, "search_run": 2}  # the first two are defaults
    write_json(runs / "4" / "config.json", config)
    assert past_runs(str(runs))[0]["environment"] == "as run 2"


def test_past_runs_lists_broken_files_as_damaged(runs):
    record = read_json(runs / "1" / "run.json")
    write_json(runs / "1" / "run.json", record | {"result": 10**400})  # beyond floats
    (runs / "2" / "run.json").unlink()
    os.mkfifo(runs / "2" / "run.json")  # it does not wait for a pipe
    assert [run["status"] for run in past_runs(str(runs))] == ["done", "stopped", "damaged", "damaged"]


@pytest.mark.parametrize(
    ("lock", "host", "age", "status"),
    [
        ("held", "here", 3600, "running"),
        ("free", "here", 1, "died"),
        ("free", "otherhost", 1, "running"),
        ("free", "otherhost", 3600, "died"),
        ("unknown", "here", 1, "running"),
        ("unknown", "here", 3600, "died"),
    ],
)
def test_status_of_a_run_recorded_as_running(lock, host, age, status, tmp_path, monkeypatch):
    beat = (datetime.now(UTC) - timedelta(seconds=age)).replace(tzinfo=None).isoformat()
    run = {"experiment": {"name": "adapt"}, "status": "RUNNING", "start_time": beat, "heartbeat": beat}
    name = platform.node() if host == "here" else "another"
    write_json(tmp_path / "1" / "run.json", {**run, "host": {"hostname": name}})
    write_json(tmp_path / "1" / "config.json", {})
    held = lock_folder(tmp_path / "1")
    if lock != "held":
        held.release()
    if lock == "unknown":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    (past_run,) = past_runs(str(tmp_path))
    assert past_run["status"] == status


def test_died_run_is_listed_with_its_resume_command(tmp_path, capsys):
    run = {"experiment": {"name": "adapt shrink"}, "status": "RUNNING", "start_time": "2026-11-23T10:00:07"}
    for number, config in ((1, {"resume": None}), (2, {})):
        write_json(tmp_path / str(number) / "run.json", run)
        write_json(tmp_path / str(number) / "config.json", config)
    assert PROGRAM.run(["runs", "with", f"runs_dir={tmp_path}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "Resume it" in line]
    assert lines == [f"run 1 died. Resume it with: das-adapt shrink with resume=1 runs_dir={tmp_path}"]


def test_past_runs_are_printed_the_newest_first(runs, capsys):
    assert PROGRAM.run(["runs", "with", f"runs_dir={runs}", "limit=3"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "result"
    assert [line.split() for line in lines[:3]] == [
        ["4", "2026-11-24", "10:00", "done", "adapt", "shrink", "-", "VLM", "answering", "0.9000"],
        ["3", "2026-11-23", "10:00", "stopped", "agents", "bandit?[2J", "METER-VQA", "-"],
        ["2", "2026-11-22", "10:00", "done", "agents", "maskable_ppo", "ViLT-VQA", "0.7000"],
    ]
    assert lines[-1] == "1 more: limit=4 shows all"
