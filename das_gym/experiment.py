"""Sacred experiments that keep each run in `runs/<id>/`, can go on with a stopped one, and speak plainly of mistakes."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred 0.8.7 imports it
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # and on Python 3.12 on calls pkgutil.find_loader
    from sacred import Experiment
    from sacred.observers import FileStorageObserver, RunObserver
    from sacred.run import Run
    from sacred.serializer import flatten, restore
    from sacred.utils import SacredError, get_by_dotted_path, iterate_flattened

from das_gym.files import read_json, write_text
from das_gym.registration import named_environments
from das_gym.runs import RUNS_DIR, find_run

MISTAKES = (ValueError, TypeError, OSError, FloatingPointError, gymnasium.error.Error)
"""What a wrong setting or a broken file raises: told in one paragraph, without a traceback."""


class RunError(SacredError):
    """A mistake that a person can mend, printed without a traceback; the exit code is 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False)


class RunFolder(FileStorageObserver):
    """Keeps a run in `<runs_dir>/<id>/`; its JSON files are written whole or not at all.

    Args:
        runs_dir: Folder of all runs.
        reopen: Folder of a stopped run to go on in, instead of a new one.
    """

    def __init__(self, runs_dir: str | Path, reopen: Path | None = None) -> None:
        super().__init__(runs_dir)
        self.reopen = reopen

    def _make_run_dir(self, _id: str | None) -> None:
        if self.reopen is None:
            super()._make_run_dir(_id)
        else:
            self.dir = str(self.reopen)
            (self.reopen / "metrics.json").unlink(missing_ok=True)  # the run logs them again

    def save_json(self, obj: Any, filename: str) -> None:
        """Write one of Sacred's own files, atomically."""
        write_text(Path(self.dir) / filename, json.dumps(flatten(obj), sort_keys=True, indent=2))


class RunsExperiment(Experiment):
    """A Sacred experiment whose runs are kept in the folder `runs_dir` and can be resumed.

    Its config has the keys `runs_dir` (text) and, if its commands can go on with a stopped run, `resume` (run id or
    None). `resume=3` takes every setting from run 3 and writes into its folder; the command finds there what it
    needs to go on. Output is captured from Python's streams, progress bars (`progress`) are left out.
    """

    observers: list[RunObserver]
    current_run: Run | None

    def run(
        self,
        command_name: str | None = None,
        config_updates: Mapping[str, Any] | None = None,
        named_configs: Sequence[str] = (),
        info: dict[str, Any] | None = None,
        meta_info: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Run:
        """As Sacred's own, observed by a `RunFolder`.

        Raises:
            RunError: a wrong setting, file or run id; its text says what to do.
        """
        given = dict(config_updates or {})
        observers = self.observers
        self.current_run = None
        try:
            runs_dir = Path(given.get("runs_dir", RUNS_DIR))
            reopen = None
            if given.get("resume") is not None:
                reopen = find_run(runs_dir, given["resume"])
                given = self._resumed(reopen, command_name or self.default_command, given, named_configs)
                named_configs = ()
            self.observers = [RunFolder(runs_dir, reopen), *observers]
            self.logger = _logger()
            options = dict(options or {})
            options["--capture"] = options.get("--capture") or "sys"
            return super().run(command_name, given, named_configs, info, meta_info, options)
        except SacredError:
            raise
        except MISTAKES as error:
            raise RunError(f"{error}{self._trace_hint()}") from error
        finally:
            self.observers = observers

    def check_settings(self, check: Callable[[dict[str, Any]], object]) -> None:
        """Have `check` raise for wrong settings before a run begins."""

        @self.config_hook
        def _(config: dict[str, Any], command_name: str, logger: Any) -> dict[str, Any]:
            del command_name, logger
            check(config)
            return {}

    def add_problems(self) -> None:
        """Named configs `meter_vqa`, ...: the settings `model` and `task` of every environment."""
        for name, entry in named_environments().items():
            self.add_named_config(name, {"model": entry.model, "task": entry.task})

    def run_commandline(self, argv: Sequence[str] | None = None) -> Run | None:
        """As Sacred's own; Ctrl-C ends with exit code 130 and says how to go on."""
        try:
            return super().run_commandline(argv)
        except KeyboardInterrupt:
            run = self.current_run
            if run is not None and run._id is not None and "resume" in run.config:
                print(f"Stopped. Go on with: {self._resume_command(run)}", file=sys.stderr)
            sys.exit(130)

    def get_usage(self, program_name: str | None = None) -> tuple[str, str, str]:
        """As Sacred's own, with the command as it is typed."""
        short, whole, internal = super().get_usage(program_name)
        typed = f"python -m {self.path}"
        return short.replace("__main__.py", typed), whole.replace("__main__.py", typed), internal

    def _resumed(self, folder: Path, command: str, given: dict[str, Any], named_configs: Sequence[str]) -> dict[str, Any]:
        """All settings of the run in `folder`; refuses a run that cannot be resumed by `command` with what is `given`."""
        known = read_json(folder / "run.json")
        begun = f"python -m {known['experiment']['name']} {known['command']}"
        if (known["experiment"]["name"], known["command"]) != (self.path, command):
            raise RunError(
                f"run {folder.name} was begun by `{begun}`: resume it by that, not by `python -m {self.path} {command}`"
            )
        if known["status"] == "COMPLETED":
            raise RunError(f"run {folder.name} is complete, there is nothing to resume; its results are in {folder}")
        settings = restore(read_json(folder / "config.json"))
        asked = dict(iterate_flattened({k: v for k, v in given.items() if k not in ("resume", "runs_dir")}))
        for name in named_configs:
            if name in self.named_configs:
                asked = {**dict(iterate_flattened(self.named_configs[name]())), **asked}
        for key, value in asked.items():
            stored = get_by_dotted_path(settings, key)
            if stored != value and key.partition(".")[0] in settings:  # an unknown key is refused as in any run
                raise RunError(
                    f"run {folder.name} was begun with {key}={stored}, so it cannot be resumed with {key}={value}; "
                    f"leave {key} out to go on with the run, or leave resume out to begin a new one"
                )
        return {**given, **settings, "runs_dir": str(folder.parent), "resume": given["resume"]}

    def _resume_command(self, run: Run) -> str:
        command, runs_dir = run.meta_info["command"], run.config["runs_dir"]
        words = [f"python -m {self.path}", *([] if command == self.default_command else [command]), f"with resume={run._id}"]
        return " ".join([*words, *([] if runs_dir == RUNS_DIR else [f"runs_dir={runs_dir}"])])

    def _trace_hint(self) -> str:
        run = self.current_run
        folder = None if run is None else run_folder(run)
        return "" if folder is None else f"\n(the whole trace is in {folder / 'run.json'})"


def _logger() -> logging.Logger:
    """Sacred's messages on standard error; left alone, Sacred would turn up the messages of every library.

    Two are left out: its warning of a new entry (settings are checked by us, and a mapping such as `env_kwargs` may get
    some), and the bare number it calls the result (commands print a conclusion).
    """
    logger = logging.getLogger("das_gym.experiment")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
    handler.addFilter(lambda record: not record.getMessage().startswith(("Added new config entry", "Result: ")))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


def required_folder(run: Run) -> Path:
    """The folder of a run that cannot do without one.

    Raises:
        ValueError: the run is not observed.
    """
    folder = run_folder(run)
    if folder is None:
        raise ValueError("this command keeps checkpoints and results in its run folder: leave --unobserved (-u) out")
    return folder


def run_folder(run: Run) -> Path | None:
    """The folder that a started run writes to; None for one that is not observed (`--unobserved`)."""
    folders = [observer.dir for observer in run.observers if isinstance(observer, RunFolder)]
    return Path(folders[0]) if folders and folders[0] else None
