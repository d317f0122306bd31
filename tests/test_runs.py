from __future__ import annotations

import errno
import json
import os
import platform
import shlex
from pathlib import Path

import gymnasium
import pytest

import das_gym
from das_gym import commandline
from das_gym.commandline import format_command
from das_gym.data.cache import cache_folder
from das_gym.experiment import RunError, RunsExperiment, lock_run, run_folder
from das_gym.files import read_json, write_json
from das_gym.progress import progress
from das_gym.runs import find_run, library_versions, read_config, runs_dir_words


@pytest.fixture
def experiment():
    ex = RunsExperiment("trial", save_git_info=False)
    ex.add_config(seed=0, runs_dir="runs", resume=None, number=1, broken=False)
    ex.add_named_config("two", {"number": 2})

    @ex.main
    def count(_run, number, broken, resume):
        print("counting")
        with progress(3, "bar") as bar:
            for step in range(3):
                bar.update()
                _run.log_scalar("step", float(step), step)
        if broken:
            raise ValueError("images/7.png is broken; replace it")
        return float(number)

    return ex


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def test_a_run_is_kept_in_its_folder(experiment, tmp_path):
    run = experiment.run(config_updates={"runs_dir": str(tmp_path / "r")}, named_configs=["two"])
    folder = run_folder(run)
    assert folder == tmp_path / "r" / "1"
    assert run.result == 2.0
    assert status(folder) == "COMPLETED"
    assert json.loads((folder / "config.json").read_text())["number"] == 2
    assert json.loads((folder / "metrics.json").read_text())["step"]["values"] == [0.0, 1.0, 2.0]
    assert (folder / "cout.txt").read_text() == "counting\n"  # and no progress bar
    assert experiment.observers == []


def test_one_of_several_processes_tells(experiment, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert experiment.run().result == 1.0
    assert capsys.readouterr() == ("", "")


def test_a_run_tells_its_own_file_and_the_libraries(experiment, tmp_path):
    experiment.run(config_updates={"runs_dir": str(tmp_path)})
    told = json.loads((tmp_path / "1" / "run.json").read_text())["experiment"]
    assert told["mainfile"] == "test_runs.py"
    versions = dict(line.split("==") for line in told["dependencies"])
    assert versions["torch"] == library_versions()["torch"]
    assert versions["das_gym"] == das_gym.__version__


def test_a_mistake_is_told_without_a_traceback(experiment, tmp_path, capsys):
    with pytest.raises(RunError, match=r"images/7.png is broken; replace it\n\(the whole trace is in .*run.json\)"):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "broken": True})
    with pytest.raises(SystemExit) as end:
        experiment.run_commandline(["trial", "with", f"runs_dir={tmp_path}", "broken=True"])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "error: images/7.png is broken; replace it\n(the whole trace is in" in error
    assert "RunError" not in error
    assert "Traceback" not in error
    assert status(tmp_path / "2") == "FAILED"
    assert "Traceback" in "".join(json.loads((tmp_path / "2" / "run.json").read_text())["fail_trace"])


def test_a_stopped_run_goes_on_in_its_folder_with_its_settings(experiment, tmp_path):
    with pytest.raises(RunError):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "broken": True, "number": 5})
    config = json.loads((tmp_path / "1" / "config.json").read_text())
    (tmp_path / "1" / "config.json").write_text(json.dumps({**config, "broken": False}))
    run = experiment.run(config_updates={"runs_dir": str(tmp_path), "resume": 1})
    assert run.result == 5.0
    assert run_folder(run) == tmp_path / "1"
    assert status(tmp_path / "1") == "COMPLETED"
    assert json.loads((tmp_path / "1" / "metrics.json").read_text())["step"]["steps"] == [0, 1, 2]


def test_a_resumed_run_refuses_other_settings(experiment, tmp_path):
    with pytest.raises(RunError):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "broken": True})
    before = (tmp_path / "1" / "run.json").read_bytes()
    resume = {"runs_dir": str(tmp_path), "resume": 1}
    with pytest.raises(
        RunError, match="run 1 was started with number=1 and cannot be resumed with number=3; leave number out"
    ):
        experiment.run(config_updates={**resume, "number": 3})
    with pytest.raises(RunError, match="run 1 was started with number=1 and cannot be resumed with number=2"):
        experiment.run(config_updates=resume, named_configs=["two"])
    other = RunsExperiment("other", save_git_info=False)
    other.add_config(seed=0, runs_dir="runs", resume=None)
    other.main(lambda resume: 0.0)
    with pytest.raises(RunError, match=r"run 1 was begun by `.trial count.`: resume it by that, not by `python -m other"):
        other.run(config_updates=resume)
    assert (tmp_path / "1" / "run.json").read_bytes() == before


def test_a_command_to_type_can_be_pasted_into_a_shell():
    words = format_command("agents", "resume=3", runs_dir_words(Path("my runs/3")))
    assert shlex.split(words) == ["python", "-m", "agents", "with", "resume=3", "runs_dir=my runs"]
    assert runs_dir_words(Path("runs/3")) == ""


def test_a_complete_or_unknown_run_cannot_be_resumed(experiment, tmp_path):
    with pytest.raises(RunError, match=r"no run 1 in .*it holds no runs"):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "resume": 1})
    experiment.run(config_updates={"runs_dir": str(tmp_path)})
    with pytest.raises(RunError, match="run 1 is complete, there is nothing to resume"):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "resume": 1})


def test_ctrl_c_says_how_to_go_on(experiment, tmp_path, capsys):
    @experiment.command
    def interrupt(resume):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        experiment.run_commandline(["trial", "interrupt", "with", f"runs_dir={tmp_path}"])
    assert end.value.code == 130
    command = f"python -m trial interrupt with resume=1 {shlex.quote(f'runs_dir={tmp_path}')}"
    assert f"Go on with: {command}" in capsys.readouterr().err
    assert status(tmp_path / "1") == "INTERRUPTED"


def test_ctrl_c_prints_a_command_that_confirms_sensitive_settings(experiment, tmp_path, capsys):
    experiment.add_config(out=None)

    @experiment.command
    def interrupt(resume):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        experiment.run_commandline(["trial", "interrupt", "with", f"runs_dir={tmp_path}", "out=a b"])
    assert f"with resume=1 runs_dir={tmp_path} 'out=a b'" in capsys.readouterr().err


@pytest.mark.parametrize("runs_dir", ["file/runs", "file"])
def test_a_folder_that_cannot_be_written_to_is_told_in_a_line(experiment, tmp_path, monkeypatch, capsys, runs_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        experiment.run_commandline(["trial", "with", f"runs_dir={runs_dir}"])
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: runs_dir={runs_dir} cannot be written to")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["two"], 2, "error: settings stand behind `with`; did you mean `python -m trial with two`?"),
        (["number=3"], 2, "did you mean `python -m trial with number=3`?"),
        (["wiht", "number=3"], 2, "unknown sub-command 'wiht'; did you mean `python -m trial with number=3`?"),
        (["cuont"], 2, "unknown sub-command 'cuont'; did you mean `python -m trial count`?"),
        (["count", "number=3"], 2, "did you mean `python -m trial count with number=3`?"),
        (["xyz"], 2, "unknown sub-command 'xyz'; known: "),
        (["with"], 2, "nothing stands behind `with`"),
        (["--foo"], 2, "cannot read '--foo'"),
        (["with", "two", "count"], 2, "'count' stands before `with`; did you mean `python -m trial count with two`?"),
        (["with", "print_config"], 2, "did you mean `python -m trial print_config`?"),
        (["with", "tow"], 1, "unknown named config 'tow'; did you mean 'two'?"),
        (["with", "tow"], 1, "your own needs the module that registers it: use=MODULE, or import it"),
    ],
)
def test_mistyped_words_say_what_was_meant(experiment, tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        experiment.run_commandline(["trial", *words])
    said = capsys.readouterr()
    assert end.value.code == code
    assert text in said.err
    assert "Usage" not in said.out + said.err
    assert not list(tmp_path.iterdir())


def test_find_run_lists_what_there_is(tmp_path):
    for name in ("2", "10", "1", "_sources", "7"):
        (tmp_path / name).mkdir()
        if name != "7":
            (tmp_path / name / "run.json").write_text("{}")
    assert find_run(tmp_path, 10) == tmp_path / "10"
    assert find_run(tmp_path, "2") == tmp_path / "2"
    with pytest.raises(
        FileNotFoundError, match=r"no run 7 in .*; it holds runs 1, 2, 10: give one of them, or runs_dir=\.\.\."
    ):
        find_run(tmp_path, 7)
    with pytest.raises(FileNotFoundError, match=r"no run 'x' in .*nowhere; it holds no runs"):
        find_run(tmp_path / "nowhere", "x")


def test_versions():
    versions = library_versions()
    names = {"python", "das_gym", "torch", "transformers", "gymnasium", "stable_baselines3", "numpy", "sacred"}
    assert set(versions) == names
    assert versions["python"] == platform.python_version()
    assert versions["das_gym"] == das_gym.__version__
    assert versions["gymnasium"] == gymnasium.__version__


@pytest.fixture
def stopped(experiment, tmp_path):
    """A run that failed, which resumes."""
    with pytest.raises(RunError):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "broken": True})
    edit(tmp_path / "1", broken=False)
    return tmp_path / "1"


def edit(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def resume(experiment, folder, **given):
    return experiment.run(config_updates={"runs_dir": str(folder.parent), "resume": 1, **given})


def test_settings_of_a_run_build_no_object(experiment, stopped):
    edit(stopped, number={"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [f"{stopped}/MARK"]}]})
    with pytest.raises(RunError, match="a real number"):
        resume(experiment, stopped)
    assert not (stopped / "MARK").exists()


@pytest.mark.parametrize("text", ["[1]", "3", '"x"', "[" * 100_000, "{", "\ud800"])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_run_is_told_in_a_line(experiment, stopped, name, text):
    (stopped / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=rf"{name} (holds|is)"):
        resume(experiment, stopped)


@pytest.mark.parametrize("wrong", ["json", 3, [3], {"a": 1}])
def test_modules_of_a_run_are_a_list_of_names(experiment, stopped, wrong):
    edit(stopped, use=wrong)
    with pytest.raises(RunError, match=r"use(\[0\])?=.* is not allowed; give a"):
        resume(experiment, stopped)


def test_resume_keeps_recorded_modules_beside_those_that_are_given(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(commandline, "_used", [])
    experiment.add_config(use=())
    with pytest.raises(RunError):
        experiment.run(config_updates={"runs_dir": str(tmp_path), "broken": True, "use": "string"})
    with pytest.raises(RunError, match=r"images/7\.png"):
        resume(experiment, tmp_path / "1", use="json")
    assert read_config(tmp_path / "1")["use"] == ["json", "string"]


def test_resume_goes_on_where_sensitive_settings_are_repeated(experiment, stopped):
    edit(stopped, out="/somewhere", trackers=["wandb"])
    experiment.add_config(out=None, trackers=[])
    with pytest.raises(RunError, match=r"`out=/somewhere`, `trackers=\['wandb'\]`.*Repeat them to confirm: .*resume=1"):
        resume(experiment, stopped)
    with pytest.raises(RunError, match=r"`trackers=.*out=/somewhere"):  # in the command, too
        resume(experiment, stopped, out="/somewhere")
    with pytest.raises(RunError, match="out=/elsewhere"):
        resume(experiment, stopped, out="/elsewhere", trackers=("wandb",))
    assert resume(experiment, stopped, out="/somewhere", trackers=("wandb",)).result == 1.0


@pytest.mark.parametrize("name", ["run.json", "config.json", "cout.txt"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(experiment, stopped, name):
    (stopped / name).unlink(missing_ok=True)
    os.mkfifo(stopped / name)
    with pytest.raises(RunError, match=rf"{name} is a pipe or a device, which no run writes"):
        resume(experiment, stopped)


def test_a_linked_file_is_not_written_through(experiment, stopped, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (stopped / "cout.txt").unlink()
    (stopped / "cout.txt").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(RunError, match=r"cout\.txt is a link"):
        resume(experiment, stopped)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_one_process_at_a_time(experiment, stopped):
    lock = lock_run(stopped)
    with pytest.raises(RunError, match=r"another process is at work in .*1: wait for it, or stop it"):
        resume(experiment, stopped)
    lock.release()
    assert resume(experiment, stopped).result == 1.0


def test_a_running_run_is_locked_and_a_finished_one_is_not(experiment, tmp_path):
    @experiment.command
    def look(_run, resume):
        with pytest.raises(RunError, match="another process is at work"):
            lock_run(run_folder(_run))

    experiment.run("look", {"runs_dir": str(tmp_path)})
    lock_run(tmp_path / "1").release()


@pytest.mark.parametrize(
    ("runs_dir", "match"), [("", "runs_dir= is empty"), ("/proc/x", "runs_dir=/proc/x cannot be written")]
)
def test_a_place_for_runs_that_is_none(experiment, runs_dir, match, capsys):
    with pytest.raises(SystemExit) as end:
        experiment.run_commandline(["trial", "with", f"runs_dir={runs_dir}"])
    told = capsys.readouterr().err
    assert end.value.code == 1
    assert match in told
    assert "Traceback" not in told


def test_a_full_disk_at_the_start(experiment, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("das_gym.files.os.fsync", full)
    with pytest.raises(SystemExit) as end:
        experiment.run_commandline(["trial", "with", f"runs_dir={tmp_path / 'r'}"])
    told = capsys.readouterr().err
    assert end.value.code == 1
    assert "cannot be written to (No space left on device); give another folder" in told
    assert "Traceback" not in told
    assert "run.json" not in told
    assert not (tmp_path / "r" / "1").exists()


def no_home(*_, **__):
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("usual", [lambda *_, **__: Path("~/.cache/das_gym"), no_home])
def test_the_working_folder_is_no_cache(monkeypatch, usual):
    monkeypatch.delenv("DAS_GYM_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", usual)
    with pytest.raises(ValueError, match=r"no home folder is known.*set DAS_GYM_CACHE"):
        cache_folder()


def test_a_run_goes_through_where_a_name_is_no_utf8(tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    ex = RunsExperiment("trial", save_git_info=False)
    ex.add_config(runs_dir="runs", place="")

    @ex.main
    def write(_run, place):
        print(place)
        write_json(run_folder(_run) / "a.json", {"place": Path(place)})

    ex.run(config_updates={"runs_dir": str(tmp_path / "runs"), "place": str(place)})
    assert read_json(tmp_path / "runs" / "1" / "a.json") == {"place": str(place)}
    assert read_config(tmp_path / "runs" / "1")["place"] == str(place)
    assert "caf?" in (tmp_path / "runs" / "1" / "cout.txt").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_on_a_file_system_without_locks(experiment, tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    experiment.run(config_updates={"runs_dir": str(tmp_path)})
    assert status(tmp_path / "1") == "COMPLETED"
    assert f"{tmp_path} knows no locks: let no two processes work in 1 at a time" in capsys.readouterr().err


def test_a_run_that_cannot_be_locked_leaves_nothing(experiment, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: refuse())
    with pytest.raises(RunError, match="cannot be written to") as told:
        experiment.run(config_updates={"runs_dir": str(tmp_path / "runs")})
    assert told.value.__context__ is None or "NoneType" not in str(told.value.__context__)
    assert not list((tmp_path / "runs").glob("[0-9]*"))
