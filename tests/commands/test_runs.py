"""Runs: their folders, resuming, locks, errors, and what they record."""

import errno
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import das_gym
from das_gym.commands.progress import progress
from das_gym.commands.recorded import RecordedCommand, Run, RunError, lock_run, run_folder
from das_gym.commands.runs import RunSettings, library_versions
from das_gym.files import cache_folder, read_json, read_json_object, write_json


@dataclass(frozen=True)
class Settings(RunSettings):
    seed: int = 0
    number: int | dict[str, Any] = 1
    broken: bool = False
    interrupted: bool = False
    place: str = ""
    out: str | None = None
    trackers: tuple[str, ...] = ()


def count(settings: Settings, run: Run) -> float:
    print("counting")
    with progress(3, "bar") as bar:
        for step in range(3):
            bar.update()
            run.log_scalar("step", float(step), step)
    if settings.place:
        print(settings.place)
        write_json(run_folder(run) / "a.json", {"place": Path(settings.place)})
    if settings.broken:
        write_json(run_folder(run) / "checkpoint.json", {})
        raise ValueError("images/7.png is broken; replace it")
    if settings.interrupted:
        raise KeyboardInterrupt
    return float(settings.number)


@pytest.fixture
def command() -> RecordedCommand[Settings]:
    return RecordedCommand("agents trial", Settings, count, lambda: {"two": {"number": 2}})


def status(folder: Path) -> str:
    return read_json(folder / "run.json")["status"]


def edit(folder: Path, **settings: Any) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **settings})


@pytest.fixture
def stopped(command, tmp_path) -> Path:
    """The folder of a run that failed, which resumes."""
    with pytest.raises(RunError):
        command.run({"runs_dir": str(tmp_path), "broken": True})
    edit(tmp_path / "1", broken=False)
    return tmp_path / "1"


def resume(command, folder: Path, **given: Any) -> Run:
    return command.run({"runs_dir": str(folder.parent), "resume": 1, **given})


def test_run_is_kept_in_its_folder(command, tmp_path):
    run = command.run({"runs_dir": str(tmp_path / "r")}, ["two"])
    folder = run_folder(run)
    assert folder == tmp_path / "r" / "1"
    assert (run.result, status(folder), read_json(folder / "config.json")["number"]) == (2.0, "COMPLETED", 2)
    assert read_json(folder / "metrics.json")["step"]["values"] == [0.0, 1.0, 2.0]
    assert (folder / "cout.txt").read_text() == "counting\n"  # and no progress bar
    about = read_json(folder / "run.json")
    assert (about["experiment"]["name"], about["command"]) == ("agents trial", "agents trial")
    assert about["experiment"]["mainfile"] == "test_runs.py"
    versions = dict(line.split("==") for line in about["experiment"]["dependencies"])
    assert (versions["torch"], versions["das_gym"]) == (library_versions()["torch"], das_gym.__version__)


def test_run_in_another_process_than_the_main_one_keeps_and_prints_nothing(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    assert command.run({"runs_dir": str(tmp_path)}).result == 1.0
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_mistake_is_reported_without_a_traceback(command, tmp_path):
    with pytest.raises(RunError, match=r"images/7.png is broken; replace it\n\(the whole traceback is in .*run.json\)"):
        command.run({"runs_dir": str(tmp_path), "broken": True})
    assert status(tmp_path / "1") == "FAILED"
    assert "Traceback" in "".join(read_json(tmp_path / "1" / "run.json")["fail_trace"])


def test_mistake_before_anything_is_written_leaves_no_run(tmp_path):
    def refuse(settings: Settings, run: Run) -> None:
        raise ValueError("`number` does not fit the model")

    refusing = RecordedCommand("agents trial", Settings, refuse)
    with pytest.raises(RunError, match=r"^`number` does not fit the model$"):
        refusing.run({"runs_dir": str(tmp_path / "runs")})
    assert not list(tmp_path.iterdir())
    RecordedCommand("agents trial", Settings, count).run({"runs_dir": str(tmp_path)})
    with pytest.raises(RunError):
        refusing.run({"runs_dir": str(tmp_path)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "_sources"]


def test_estimate_is_no_run(tmp_path):
    command = RecordedCommand("agents trial", RunSettings, lambda settings, run: print("estimate: 1 s"))
    command.run({"runs_dir": str(tmp_path / "runs"), "estimate": True})
    assert not list(tmp_path.iterdir())


def test_resumed_run_continues_in_its_folder_with_its_settings(command, tmp_path):
    with pytest.raises(RunError):
        command.run({"runs_dir": str(tmp_path), "broken": True, "number": 5})
    edit(tmp_path / "1", broken=False)
    run = resume(command, tmp_path / "1")
    assert (run.result, run_folder(run), status(tmp_path / "1")) == (5.0, tmp_path / "1", "COMPLETED")
    assert read_json(tmp_path / "1" / "metrics.json")["step"]["steps"] == [0, 1, 2]


def test_resumed_run_keeps_metrics_that_it_does_not_log_again(tmp_path):
    def train_next(settings: Settings, run: Run) -> None:
        """Log one of two trainings, as a comparison does, which does not repeat the first one after a resume."""
        done = run_folder(run) / "first"
        run.log_scalar("second" if done.exists() else "first", 1.0, 5)
        run.log_scalar("both", 2.0 if done.exists() else 1.0, 5)
        if not done.exists():
            done.touch()
            raise KeyboardInterrupt

    command = RecordedCommand("agents trial", Settings, train_next)
    with pytest.raises(KeyboardInterrupt):
        command.run({"runs_dir": str(tmp_path)})
    resume(command, tmp_path / "1")
    metrics = read_json(tmp_path / "1" / "metrics.json")
    assert {name: logged["values"] for name, logged in metrics.items()} == {"first": [1.0], "second": [1.0], "both": [2.0]}


def test_resumed_run_rejects_other_settings_and_commands(command, stopped):
    before = (stopped / "run.json").read_bytes()
    with pytest.raises(RunError, match="run 1 was started with number=1 and cannot be resumed with number=3"):
        resume(command, stopped, number=3)
    with pytest.raises(RunError, match="number=2"):
        command.run({"runs_dir": str(stopped.parent), "resume": 1}, ["two"])
    other = RecordedCommand("agents other", Settings, count)
    with pytest.raises(RunError, match=r"run 1 was started by `das-agents trial`: resume it by that"):
        resume(other, stopped)
    assert (stopped / "run.json").read_bytes() == before


def test_interrupt_has_the_command_that_resumes(command, tmp_path):
    words = ["with", f"runs_dir={tmp_path}", "interrupted=True", "out=a b"]
    with pytest.raises(KeyboardInterrupt) as interrupt:
        command.run_words(words)
    again = f"das-agents trial with resume=1 {shlex.quote(f'runs_dir={tmp_path}')} 'out=a b'"
    assert interrupt.value.__notes__ == [f"Resume with: {again}"]  # security-relevant settings are repeated
    assert status(tmp_path / "1") == "INTERRUPTED"


def test_interrupt_before_a_resumed_run_restarts_has_the_command(command, stopped):
    def interrupt(settings: Settings) -> None:
        raise KeyboardInterrupt

    command.check = interrupt
    with pytest.raises(KeyboardInterrupt) as stop:
        command.run_words(["-F", str(stopped.parent), "with", "resume=1"])
    assert stop.value.__notes__ == [f"Resume with: das-agents trial with resume=1 runs_dir={stopped.parent}"]


def test_full_disk_does_not_keep_the_status_back(tmp_path, monkeypatch):
    def fill(settings: Settings, run: Run) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        write_json(run_folder(run) / "checkpoint.json", {})
        monkeypatch.setattr(os, "fsync", refuse)
        write_json(run_folder(run) / "search.json", {})

    with pytest.raises(RunError, match=r"search\.json cannot be written .*resume=1") as error:
        RecordedCommand("agents trial", Settings, fill).run({"runs_dir": str(tmp_path)})
    assert "traceback" not in str(error.value)
    assert status(tmp_path / "1") == "FAILED"


@pytest.mark.parametrize("runs_dir", ["file/runs", "file", "", "/proc/x"])
def test_folder_of_runs_that_cannot_be_written_is_named_before_the_command_is_imported(tmp_path, monkeypatch, runs_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"`runs_dir` is .*: got {runs_dir}"):
        RecordedCommand("agents trial", Settings, "no_such_module:main").run({"runs_dir": runs_dir})


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, "\ud800"])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_damaged_run_is_named(command, stopped, name, text):
    (stopped / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=rf"{name} (holds|is)"):
        resume(command, stopped)


def test_resumed_run_needs_the_recorded_plugins_again(command, tmp_path):
    with pytest.raises(RunError):
        command.run({"runs_dir": str(tmp_path), "broken": True, "plugins": "string"})
    edit(tmp_path / "1", plugins=["string", "colorsys"])
    with pytest.raises(RunError, match=r"`plugins=\['string', 'colorsys'\]`.* adding: plugins=\S*colorsys$"):
        resume(command, tmp_path / "1", plugins="json")
    with pytest.raises(RunError, match=r"images/7\.png"):
        resume(command, tmp_path / "1", plugins="string,colorsys")


def test_resumed_run_takes_no_place_to_write_from_its_record(command, stopped):
    edit(stopped, out="/somewhere", trackers=["wandb"])
    with pytest.raises(RunError, match=r"`out=/somewhere`, `trackers=\['wandb'\]`.* adding: out=/somewhere "):
        resume(command, stopped)
    assert resume(command, stopped, out="/other", trackers=()).result == 1.0
    assert read_json_object(stopped / "config.json")["out"] == "/other"


@pytest.mark.parametrize("name", ["run.json", "config.json", "cout.txt"])
def test_pipe_or_link_in_a_run_folder_is_rejected(command, stopped, tmp_path, name):
    (tmp_path / "mine.txt").write_text("mine")
    (stopped / name).unlink(missing_ok=True)
    os.mkfifo(stopped / name)
    with pytest.raises(RunError, match=rf"{name} is not a regular file"):
        resume(command, stopped)
    (stopped / name).unlink()
    (stopped / name).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(RunError, match=rf"{name} is a link"):
        resume(command, stopped)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_running_run_is_locked_and_a_finished_one_is_not(stopped, command):
    lock = lock_run(stopped)
    with pytest.raises(RunError, match=r"another process uses .*1"):
        resume(command, stopped)
    lock.release()

    def look(settings: Settings, run: Run) -> None:
        del settings
        with pytest.raises(RunError, match="another process uses"):
            lock_run(run_folder(run))

    RecordedCommand("agents look", Settings, look).run({"runs_dir": str(stopped.parent)})
    lock_run(stopped.parent / "2").release()


@pytest.mark.parametrize("usual", [lambda *_, **__: Path("~/.cache/das_gym"), None])
def test_cache_folder_is_never_the_working_folder(monkeypatch, usual):
    def no_home(*_: Any, **__: Any) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("DAS_GYM_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", usual or no_home)
    with pytest.raises(ValueError, match="DAS_GYM_CACHE"):
        cache_folder()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_run_on_a_file_system_without_locks(command, tmp_path, monkeypatch, capsys, code):
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    if code == errno.EIO:  # a fault of another kind leaves no run behind
        with pytest.raises(RunError, match=os.strerror(code)):
            command.run({"runs_dir": str(tmp_path)})
        assert not (tmp_path / "1").exists()
        return
    command.run({"runs_dir": str(tmp_path)})
    assert status(tmp_path / "1") == "COMPLETED"
    assert f"{tmp_path} does not support locks" in capsys.readouterr().err
    assert json.loads((tmp_path / "1" / "info.json").read_text()) == {}  # incense needs it
