"""Commands whose runs Sacred records in `runs/<id>/`, and which can continue a stopped run.

The settings are built once, from defaults, named configs and the command line, before Sacred is involved. Sacred gets them
complete, as the configuration of a run; its observers, options and captured output work as its users know them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pkgutil
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from filelock import FileLock

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred 0.8.7 imports it
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # and calls pkgutil.find_loader on Python 3.12
    from docopt import DocoptExit, docopt
    from sacred import Experiment
    from sacred.dependencies import PackageDependency, gather_sources_and_dependencies
    from sacred.observers import FileStorageObserver
    from sacred.run import Run
    from sacred.serializer import flatten

from das_gym.commands.commandline import (
    HELP,
    WIDTH,
    UsageError,
    check_words,
    describe_error,
    format_command,
    format_settings,
    help_text,
    is_our_program,
    localize_commands,
    module_docstring,
    read_settings,
    settings_text,
)
from das_gym.commands.runs import (
    CONFIG,
    LOCK,
    NOT_INSTALLED,
    USER_ERRORS,
    FailedResultError,
    RunSettings,
    check_links,
    find_run,
    library_versions,
    lock_folder,
    runs_dir_setting,
)
from das_gym.commands.settings import build, flatten_settings, full_names, settings_dict, tuples_to_lists
from das_gym.commands.trust import (
    NOT_FROM_RECORDS,
    check_record,
    import_plugins,
    imported_plugins,
    settings_not_from_records,
)
from das_gym.files import check_writable, explain_damage, read_bytes, read_json, read_json_object, write_text
from das_gym.names import check_names
from das_gym.processes import is_main_process, run_on_main_process, world_size

Settings = TypeVar("Settings", bound=RunSettings)
NamedConfigs = Mapping[str, Mapping[str, Any]]

COMMANDS = ("print_config", "print_named_configs")
"""Actions of a recorded command besides running, by the word that replaces `with` or precedes it."""

USAGE = """
Usage:
  das [(with UPDATE...)] [options]
  das COMMAND [(with UPDATE...)] [options]
"""
"""Usage for docopt. The program is always `das`, since docopt takes no name with spaces."""

OPTIONS = """
Instead of `with` or before it:
  print_config                Print every setting with value and description;
                              * marks those that are not the default
  print_named_configs         Print the named configs and their settings

Options before `with`, those of Sacred that apply here:
  -F DIR --file_storage=DIR   Folder of all runs, as runs_dir=DIR
  -u --unobserved             Keep nothing of the run
  -m URL --mongo_db=URL       Write the run to MongoDB, too: host:port:database
  -c TEXT --comment=TEXT      Keep a comment with the run
  -l LEVEL --loglevel=LEVEL   Level of Sacred's messages, such as WARNING
  -d --debug                  Print the traceback of an error
"""

RUN = "run.json"
"""What Sacred records of a run."""

INFO = "info.json"
"""Sacred writes it only if it has content; incense, which reads run folders, always needs it."""

SACRED_FILES = {"config.json", "cout.txt", INFO, "metrics.json", RUN, LOCK}
"""Files of a run folder before its command has written anything."""

_LOGGER = logging.getLogger("das_gym.commands.recorded")


@dataclass(eq=False)
class RecordedCommand(Generic[Settings]):
    """A command whose runs are kept in the folder `runs_dir`; `resume=3` continues run 3 with its settings in its folder.

    Attributes:
        name: Program and command, as in "agents table". The run records it.
        settings: The dataclass of its settings, or its "module:name"; every field has a default.
        main: Function of the settings and Sacred's run, which returns the result of the run, or its "module:name", imported
            once the settings are checked. A ValueError or another of `USER_ERRORS`, except a `FailedResultError`, before it
            has written a file leaves no run behind.
        named_configs: Returns the settings that each named config stands for. It is called after plugins are imported.
        check: Called with the settings before a run begins; it raises for invalid ones, and loads nothing.
        complete_settings: Adds settings that follow from those that are given, before any is checked.
        current_run: The last run, finished or not.

    Example:
        >>> command = RecordedCommand("agents trial", RunSettings, lambda settings, run: 1.0)
        >>> command.run({"runs_dir": "runs"}).result  # doctest: +SKIP
        1.0
    """

    name: str
    settings: type[Settings] | str
    main: Callable[[Settings, Run], Any] | str
    named_configs: Callable[[], NamedConfigs] = dict
    check: Callable[[Settings], None] | None = None
    complete_settings: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    current_run: Run | None = None

    @cached_property
    def settings_class(self) -> type[Settings]:
        """The dataclass of its settings."""
        return pkgutil.resolve_name(self.settings) if isinstance(self.settings, str) else self.settings

    def run(
        self,
        config_updates: Mapping[str, Any] | None = None,
        named_configs: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Run:
        """Run the command and return the finished run.

        Args:
            config_updates: Settings by name; those of a group in a mapping.
            named_configs: Named configs, or JSON and YAML files of settings. Later ones win, `config_updates` over all.
            options: Sacred's options by their long flags.

        Raises:
            RunError: A wrong setting, file or run id. The message includes the remedy.
        """
        self.current_run = None
        lock = None
        try:
            given = flatten_settings(config_updates or {})
            options = dict(options or {})
            folder = options.pop("--file_storage", None)
            if folder is not None:
                given["runs_dir"] = folder  # over a setting of that name
            values, reopen = self.resolve(given, named_configs)
            if reopen is not None and is_main_process():
                lock = lock_run(reopen)
            settings = build(self.settings_class, values)
            if self.check is not None:
                self.check(settings)
            return self._record(settings, reopen, named_configs, options)
        except RunError:
            raise
        except USER_ERRORS as error:
            observer = None if self.current_run is None else run_observer(self.current_run)
            is_setting = not isinstance(error, FailedResultError)
            if observer is not None and is_setting and observer.is_untouched:
                observer.discard()  # a wrong setting leaves no run behind
                raise RunError(describe_error(error)) from error
            hint = "" if observer is None else observer.traceback_hint
            raise RunError(f"{describe_error(error, self.resume_command())}{hint}") from error
        except KeyError as error:
            if "Invalid key" not in str(error):  # Sacred's message for a name in a mapping that it does not store
                raise
            raise RunError(str(error.args[0])) from error
        finally:
            if lock is not None:
                lock.release()

    def _record(self, settings: Settings, reopen: Path | None, named_configs: Sequence[str], options: dict[str, Any]) -> Run:
        """Run `main` as a Sacred run that is observed by a `RunFolder`."""
        is_kept = is_main_process() and not settings.estimate  # an estimate is only printed
        if is_kept and not options.get("--unobserved"):  # before torch is imported
            check_writable(Path(settings.runs_dir), settings.runs_dir, "runs_dir")
        function = self.main if callable(self.main) else pkgutil.resolve_name(self.main)

        def main(_run: Run) -> Any:
            return function(settings, _run)

        def started(id: str) -> None:
            setattr(experiment.current_run, "_id", id)  # noqa: B010 - the folder's id, where a database gave another

        main.__name__ = self.name.replace(".", " ")  # Sacred logs it; it takes a dot for an ingredient's command
        experiment = Experiment(self.name, save_git_info=False)  # git fails in folders of other owners
        # Record the file of the command and the libraries' versions; Sacred itself would record this file.
        module = vars(sys.modules[function.__module__])
        if "__file__" in module:
            experiment.base_dir = str(Path(module["__file__"]).resolve().parent)
            experiment.mainfile, experiment.sources, _ = gather_sources_and_dependencies(module, False, experiment.base_dir)
        versions = {name: version for name, version in library_versions().items() if name != "python"}
        experiment.dependencies = {PackageDependency(*each) for each in versions.items() if each[1] != NOT_INSTALLED}
        experiment.add_config(settings_dict(settings))
        experiment.main(main)
        experiment.logger = _sacred_logger()
        folder = RunFolder(settings.runs_dir, reopen, started)
        experiment.observers = [folder] if is_kept else []
        options["--capture"] = "sys"  # Python's streams; without progress bars
        try:
            with nullcontext() if is_main_process() else redirect_stdout(io.StringIO()):
                meta_info = {"named_configs": list(named_configs)}
                self.current_run = run = experiment._create_run(options=options, meta_info=meta_info)
                run()
            return run
        finally:
            if folder.lock is not None:
                folder.lock.release()

    def resolve(self, given: Mapping[str, Any], named_configs: Sequence[str]) -> tuple[dict[str, Any], Path | None]:
        """Return named configs and given settings, all by dotted names, and the folder of the run that they resume.

        Plugins are imported first. A resumed run keeps its recorded settings.
        """
        given = dict(given)
        runs_dir = str(given.get("runs_dir", RunSettings.runs_dir))
        if not runs_dir.strip():
            raise ValueError(f"`runs_dir` is empty: got {runs_dir!r}. Give a folder, or leave it out.")
        reopen = None if given.get("resume") is None else find_run(runs_dir, given["resume"])
        if reopen is not None:
            check_links(reopen)
        if given.get("plugins"):
            given["plugins"] = import_plugins(given["plugins"])
        merged: dict[str, Any] = {}
        for part in (*map(self._named_config, named_configs), given):
            merged |= full_names(self.settings_class, part)
        if reopen is not None:
            merged = self._resumed(reopen, merged)
        elif self.complete_settings is not None:
            merged = self.complete_settings(merged)
        return merged, reopen

    def _named_config(self, name: str) -> Mapping[str, Any]:
        if Path(name).suffix in (".json", ".yaml", ".yml"):
            settings = flatten_settings(read_settings_file(Path(name)))
            check_record(name, settings)
            return settings
        known = self.named_configs()
        listing = format_command(f"{self.name} print_named_configs")
        check_names([name], known, "named config", own=True, listing=listing)
        return flatten_settings(known[name])

    def _resumed(self, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
        """Return all settings of the run in `folder`; raise RunError where this command cannot resume it with `given`."""
        known = read_json(folder / RUN)
        with explain_damage(folder / RUN, "start a new run"):
            name = str(known["experiment"]["name"])
            status = known["status"]
        if name != self.name:
            original = format_command(name) if is_our_program(name) else repr(name)
            raise RunError(
                f"run {folder.name} was started by `{original}`: resume it by that, not by `{format_command(self.name)}`"
            )
        if status == "COMPLETED":
            raise RunError(f"run {folder.name} is complete, there is nothing to resume; its results are in {folder}")
        stored = flatten_settings(read_json_object(folder / CONFIG))
        if "seed" not in {field.name for field in fields(self.settings_class)}:
            stored.pop("seed", None)  # Sacred gives every run one
        known_groups = {name.partition(".")[0] for name in stored}
        changes = {name: value for name, value in given.items() if name not in ("resume", "runs_dir", "plugins")}
        for key, value in tuples_to_lists(changes).items():
            if key.rpartition(".")[2] in NOT_FROM_RECORDS:
                continue
            if stored.get(key) != value and key.partition(".")[0] in known_groups:  # unknown ones raise as in any run
                raise RunError(
                    f"run {folder.name} was started with {key}={stored.get(key)} and cannot be resumed with {key}={value}; "
                    f"leave {key} out to continue the run, or leave resume out to start a new one"
                )
        taken = {name: value for name, value in stored.items() if name not in changes}
        never = settings_not_from_records(taken)
        check_record(f"the record of run {folder.name}", taken, never)
        own = {"resume": given["resume"], "runs_dir": str(folder.parent), "plugins": given.get("plugins", ())}
        return {**taken, **changes, **own}

    def run_words(self, words: Sequence[str], siblings: Sequence[str] = ()) -> Run | None:
        """Run the command with the command-line words after its name; messages suggest `siblings` as first words."""
        names = [field.name for field in fields(self.settings_class)]
        check_words(words, self.name, names, (*siblings, *COMMANDS), self.named_configs())
        end = list(words).index("with") if "with" in words else len(words)
        if set(words[:end]) & set(HELP):
            print(self.help_text())
            return None
        try:
            options = docopt(USAGE + OPTIONS, list(words), default_help=False)
        except DocoptExit:
            listing = f"`{format_command(self.name)} --help` lists all options"
            raise UsageError(f"cannot read {' '.join(words)!r}; {listing}") from None
        given, named = read_settings(options["UPDATE"] or ())
        if options["COMMAND"] == "print_config":
            values, _ = self.resolve(given, named)
            print(settings_text(self.settings_class, settings_dict(build(self.settings_class, values))))
            return None
        if options["COMMAND"] == "print_named_configs":
            for name, settings in self.named_configs().items():
                print(name, *format_settings(settings))
            return None
        return self._run_command(given, named, {name: value for name, value in options.items() if name.startswith("-")})

    def _run_command(self, given: Mapping[str, Any], named: Sequence[str], options: Mapping[str, Any]) -> Run:
        """Run; after an interrupt, add the command that resumes the run."""
        try:
            return self.run(given, named, options)
        except KeyboardInterrupt as interrupt:
            has_started = self.current_run is not None and self.current_run._id is not None
            if has_started or given.get("resume") is None:
                command = self.resume_command()
            else:  # as it was typed
                folder = options.get("--file_storage")
                typed = {**given, "runs_dir": folder} if folder else dict(given)
                if imported_plugins():
                    typed.pop("plugins", None)  # `format_command` adds them
                command = format_command(self.name, *format_settings(typed))
            if command is not None:
                interrupt.add_note(f"Resume with: {command}")
                if world_size() > 1:
                    interrupt.add_note(f"in {world_size()} processes, as it was started")
            raise
        except Exception:
            if options.get("--debug"):
                traceback.print_exc()
            raise

    def help_text(self) -> str:
        """Return what the command does, its settings, named configs and options, in 80 columns."""
        module = self.main.__module__ if callable(self.main) else self.main.partition(":")[0]
        parts = [localize_commands(help_text(self.settings_class, module_docstring(module)))]
        named = self.named_configs()
        if named:
            parts.append("\nNamed configs, words after `with` that stand for several settings:\n")
            parts.append(textwrap.fill(", ".join(named), WIDTH, initial_indent="  ", subsequent_indent="  "))
        return "\n".join([*parts, OPTIONS.rstrip()])

    def resume_command(self) -> str | None:
        """Return the command that resumes the last run; None where it left nothing to resume."""
        run = self.current_run
        if run is None or run._id is None or run.status == "COMPLETED":
            return None
        repeated = settings_not_from_records(run.config)
        folder = Path(run.config["runs_dir"]) / str(run._id)
        confirmed = format_settings(repeated, cls=self.settings_class)
        return format_command(self.name, f"resume={run._id}", runs_dir_setting(folder), *confirmed)


def _sacred_logger() -> logging.Logger:
    """Return a logger for Sacred's messages on standard error; its own would turn up the messages of every library."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
    # Commands print a conclusion, and a run without observers is asked for: by `estimate` or `--unobserved`.
    handler.addFilter(lambda record: not record.getMessage().startswith(("Result: ", "No observers")))
    _LOGGER.handlers = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    return _LOGGER


def run_observer(run: Run) -> RunFolder | None:
    """Return the observer that keeps the folder of a started run; None for one that is not observed (`--unobserved`)."""
    return next((each for each in run.observers if isinstance(each, RunFolder) and each.dir), None)


def run_folder(run: Run) -> Path | None:
    """Return the folder that a started run writes to; None for one that is not observed (`--unobserved`)."""
    observer = run_observer(run)
    return None if observer is None else Path(observer.dir)


def required_folder(run: Run) -> Path:
    """Return the folder of a run that needs one: in each of several processes that of the main one."""
    folder = run_on_main_process(lambda: run_folder(run))
    if folder is None:
        raise ValueError("this command keeps checkpoints and results in its run folder: leave --unobserved (-u) out")
    return folder


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values. Aliases are rejected: nested ones expand a few hundred bytes to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*): write the value itself")
        return super().compose_node(parent, index)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON or YAML file given after `with`, as plain values."""
    if path.suffix == ".json":
        return read_json_object(path)
    try:
        settings = yaml.load(read_bytes(path), Loader=_PlainLoader)
        settings = json.loads(json.dumps(settings, default=str))  # names that are numbers, and dates, become texts
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, expected settings by name")
    return settings


class RunError(ValueError):
    """A user error: its message is printed without a traceback, and the exit code is 1."""


def lock_run(folder: Path) -> FileLock:
    """Lock a run folder for this process and return the lock, see `das_gym.commands.runs`."""
    try:
        return lock_folder(folder)
    except ValueError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise not_writable(folder.parent, error) from None


def not_writable(runs_dir: str | Path, error: OSError) -> RunError:
    """Return the error of a folder of runs that cannot be written to."""
    return RunError(f"`runs_dir` is not writable: got {runs_dir} ({error.strerror}). Give another folder.")


class RunFolder(FileStorageObserver):
    """Keeps a run in `<runs_dir>/<id>/`. Each of its JSON files is written completely or not at all.

    A database numbers runs by itself. This observer comes last, so that the run's id is the folder's.

    Args:
        runs_dir: Folder of all runs.
        reopen: Folder of a stopped run to continue, instead of a new one.
        on_started: Called with the id, once the folder exists.
    """

    cout: str

    def __init__(self, runs_dir: str | Path, reopen: Path | None, on_started: Callable[[str], object]) -> None:
        super().__init__(runs_dir)
        self.priority = -100
        self.had_base = Path(runs_dir).exists()
        self.reopen = reopen
        self.on_started = on_started
        self.lock: FileLock | None = None
        self.logged: set[str] = set()
        self.keeps_traceback = True
        self.run_entry: dict[str, Any] = {}  # Sacred reports the failure of a run whose folder could not be made here

    def _make_run_dir(self, _id: str | None) -> None:
        try:
            if self.reopen is None:
                super()._make_run_dir(_id)
            else:
                self.dir = str(self.reopen)
        except OSError as error:
            raise not_writable(self.basedir, error) from None
        if self.dir is not None and self.reopen is None:
            self.lock = lock_run(Path(self.dir))

    @property
    def is_untouched(self) -> bool:
        """Whether the command has not written anything into its new folder yet."""
        return self.reopen is None and {path.name for path in Path(self.dir).iterdir()} <= SACRED_FILES

    @property
    def traceback_hint(self) -> str:
        """A line for error messages; empty where the disk was too full for the traceback."""
        return f"\n(the whole traceback is in {Path(self.dir) / RUN})" if self.keeps_traceback else ""

    def discard(self) -> None:
        """Remove the folder, and Sacred's copies of the sources if no other run needs them."""
        shutil.rmtree(self.dir)
        base = Path(self.basedir)
        if {path.name for path in base.iterdir()} <= {Path(self.source_dir).name}:
            shutil.rmtree(self.source_dir, ignore_errors=True)
            if not self.had_base:
                base.rmdir()

    def started_event(self, *args: Any, **kwargs: Any) -> Any:
        """Start the run as Sacred does. Remove the run folder after an error or an interrupt."""
        try:
            id = super().started_event(*args, **{**kwargs, "_id": None})
            if not (Path(self.dir) / INFO).exists():
                self.save_json({}, INFO)
            self.on_started(id)
            return id
        except (OSError, RunError, KeyboardInterrupt) as error:
            if self.reopen is None and self.dir is not None:
                shutil.rmtree(self.dir, ignore_errors=True)
            self.dir = None  # type: ignore[assignment]  # as Sacred's own begins
            if isinstance(error, OSError):
                raise not_writable(self.basedir, error) from None
            raise

    def save_cout(self) -> None:
        """Write the output as Sacred does, also where file names in it are not UTF-8."""
        self.cout = self.cout.encode("utf-8", "replace").decode("utf-8")
        super().save_cout()

    def log_metrics(self, metrics_by_name: dict[str, Any], info: Any) -> None:
        """Add values to the metrics as Sacred does. What a stopped run logged stays, unless it is logged again."""
        path = Path(self.dir) / "metrics.json"
        again = metrics_by_name.keys() - self.logged
        if self.reopen is not None and again and path.is_file():
            self.save_json({name: logged for name, logged in read_json(path).items() if name not in again}, path.name)
        self.logged |= again
        super().log_metrics(metrics_by_name, info)

    def save_json(self, obj: Any, filename: str) -> None:
        """Write a file atomically and as plain JSON: tuples become lists. On a full disk, `run.json` is overwritten."""
        if self.dir is None:
            return
        path = Path(self.dir) / os.fspath(filename)
        values = flatten(tuples_to_lists(obj))
        try:
            write_text(path, json.dumps(values, sort_keys=True, indent=2))
        except OSError:
            if path.name != RUN or not write_in_place(path, json.dumps(values | {"fail_trace": []}, sort_keys=True)):
                raise
            self.keeps_traceback = False


def write_in_place(path: Path, text: str) -> bool:
    """Overwrite a file by a text that takes no more room than it; return False if it does."""
    data = text.encode("utf-8", "replace")
    size = path.stat().st_size if path.exists() else 0
    if len(data) > size:
        return False
    with path.open("r+b") as file:
        file.write(data.ljust(size))
    return True
