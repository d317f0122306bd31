"""Sacred experiments that keep each run in `runs/<id>/`, can go on with a stopped one, and speak plainly of mistakes."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import io
import json
import logging
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred 0.8.7 imports it
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # and on Python 3.12 on calls pkgutil.find_loader
    from sacred import Experiment, arg_parser
    from sacred.dependencies import PackageDependency, gather_sources_and_dependencies, get_digest
    from sacred.observers import FileStorageObserver, RunObserver
    from sacred.run import Run
    from sacred.serializer import flatten
    from sacred.utils import SacredError, convert_to_nested_dict, get_by_dotted_path, iterate_flattened

from filelock import FileLock

from das_gym.commandline import (
    HELP,
    as_typed,
    flag_mistake,
    help_text,
    is_ours,
    meant,
    setting_words,
    typed,
    use,
    used,
)
from das_gym.config import build, check_names, plain, settings_text
from das_gym.drawing.charts import draw_curves
from das_gym.files import read_json, write_bytes, write_text
from das_gym.interrupts import exit_code, stop_message
from das_gym.locks import lock_folder
from das_gym.processes import is_first, of_first, world
from das_gym.progress import waiting
from das_gym.registration import named_environments
from das_gym.runs import (
    CONFIG,
    MISSING,
    MISTAKES,
    RUNS_DIR,
    RunSettings,
    check_links,
    find_run,
    library_versions,
    read_config,
    runs_dir_words,
)
from das_gym.sacred_options import CONFIG_FILES, REFUSED, check_options, read_config_file
from das_gym.streams import shown, unread
from das_gym.trust import ask_to_repeat, sensitive_settings, unknown_modules

arg_parser.restore = plain  # in place of jsonpickle, which builds any object that a setting's text names

LOSSES = "losses.png"
INFO = "info.json"
"""Sacred writes it where there is something to tell; incense, which reads run folders, cannot do without."""

Settings = TypeVar("Settings", bound=RunSettings)
NamedConfigs = Callable[[], Mapping[str, Mapping[str, Any]]]


class RunError(SacredError):
    """A mistake that a person can mend, printed without a traceback; the exit code is 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False)


class RunFolder(FileStorageObserver):
    """Keeps a run in `<runs_dir>/<id>/`; its JSON files are written whole or not at all.

    Where the run is kept in a database, too, that numbers it by itself: the folder comes last, and its id is the run's.

    Args:
        runs_dir: Folder of all runs.
        reopen: Folder of a stopped run to go on in, instead of a new one.
        named: Called with the id.
    """

    cout: str

    def __init__(
        self, runs_dir: str | Path, reopen: Path | None = None, named: Callable[[str], object] = lambda id: None
    ) -> None:
        super().__init__(runs_dir)
        self.priority = -100
        self.reopen = reopen
        self.named = named
        self.lock: FileLock | None = None

    def _make_run_dir(self, _id: str | None) -> None:
        try:
            if self.reopen is None:
                super()._make_run_dir(_id)
            else:
                (self.reopen / "metrics.json").unlink(missing_ok=True)  # the run logs them again
                self.dir = str(self.reopen)
        except OSError as error:
            raise _not_written(self.basedir, error) from None
        if self.dir is not None and self.reopen is None:
            self.lock = lock_run(Path(self.dir))

    def started_event(self, *args: Any, **kwargs: Any) -> Any:
        """As Sacred's own; after an error or an interrupt no run folder is left behind."""
        try:
            id = super().started_event(*args, **{**kwargs, "_id": None})
            if not (Path(self.dir) / INFO).exists():
                self.save_json({}, INFO)
            self.named(id)
            return id
        except (OSError, RunError, KeyboardInterrupt) as error:
            if self.reopen is None and self.dir is not None:
                shutil.rmtree(self.dir, ignore_errors=True)
            self.dir = None  # type: ignore[assignment]  # as Sacred's own begins
            raise _not_written(self.basedir, error) if isinstance(error, OSError) else error from None

    def completed_event(self, stop_time: Any, result: Any) -> None:
        """As Sacred's own, after a picture of the losses that were logged: a run that is complete is never gone on with."""
        try:
            self._draw_losses()
        finally:
            super().completed_event(stop_time, result)

    def _draw_losses(self) -> None:
        metrics = Path(self.dir) / "metrics.json"
        logged = read_json(metrics) if metrics.is_file() else {}
        curves = {name: (m["steps"], m["values"]) for name, m in logged.items() if name.split(".")[-1] == "loss"}
        if any(len(steps) > 1 for steps, _ in curves.values()):
            draw_curves(
                Path(self.dir) / LOSSES, curves, f"{self.run_entry['experiment']['name']}, run {Path(self.dir).name}"
            )

    def find_or_save(self, filename: str, store_dir: Path) -> Path:
        """As Sacred's own, whole or not at all; a copy that is not what the checksum in its name says is written again."""
        source, digest = Path(filename), get_digest(filename)
        stored = Path(store_dir) / f"{source.stem}_{digest}{source.suffix}"
        if not stored.is_file() or get_digest(str(stored)) != digest:
            write_bytes(stored, source.read_bytes())
        return stored

    def failed_event(self, fail_time: Any, fail_trace: Any) -> None:
        """As Sacred's own, if there is a folder to tell it in."""
        if self.dir is not None:
            super().failed_event(fail_time, fail_trace)

    def interrupted_event(self, interrupt_time: Any, status: str) -> None:
        """As Sacred's own, if there is a folder to tell it in."""
        if self.dir is not None:
            super().interrupted_event(interrupt_time, status)

    def save_cout(self) -> None:
        """As Sacred's own, of names that are no UTF-8, too."""
        self.cout = self.cout.encode("utf-8", "replace").decode("utf-8")
        super().save_cout()

    def save_json(self, obj: Any, filename: str) -> None:
        """Write one of Sacred's own files, atomically and as plain JSON: tuples become lists."""
        write_text(Path(self.dir) / filename, json.dumps(flatten(plain(obj)), sort_keys=True, indent=2))


def _caller() -> dict[str, Any]:
    """The globals of the module that makes an experiment: of the first frame that is no constructor."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    return frame.f_globals


def _not_written(runs_dir: str | Path, error: OSError) -> RunError:
    return RunError(f"runs_dir={runs_dir} cannot be written to ({error.strerror}); give another folder")


def lock_run(folder: Path) -> FileLock:
    """The lock of a run folder, taken, see `das_gym.locks`.

    Raises:
        RunError: another process has it, or nothing can be written there.
    """
    try:
        return lock_folder(folder)
    except ValueError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise _not_written(folder.parent, error) from None


class RunsExperiment(Experiment):
    """A Sacred experiment whose runs are kept in the folder `runs_dir` and can be resumed.

    Its config has the keys of `das_gym.runs.RunSettings` and, if its commands can go on with a stopped run, `resume` (run
    id or None). `resume=3` takes every setting from run 3 and writes into its folder; the command finds there what it
    needs to go on. Output is captured from Python's streams, progress bars (`progress`) are left out.

    Attributes:
        siblings: Words that may stand in place of `with`: the program's other sub-commands.
        suggests: Whether its commands say what to type next; not where they run as a part of another command.
        begun: Called with the id of a run once its folder is there, with which it can be resumed; None = nobody is told.
        settings: The dataclass of its settings, once `add_settings` was told.
    """

    observers: list[RunObserver]
    current_run: Run | None
    siblings: tuple[str, ...] = ()
    suggests: bool = True
    begun: Callable[[str], object] | None = None
    settings: type[RunSettings] | None = None
    _named: tuple[NamedConfigs, ...] = ()
    _files: Mapping[str, dict[str, Any]] = MappingProxyType({})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tell_sources(_caller())

        @self.command(unobserved=True)
        def print_config(_run: Run) -> None:
            """Print every setting with its value and description; * marks those that are not the default."""
            print(settings_text(self.settings or RunSettings, _run.config))

    def _tell_sources(self, maker: dict[str, Any]) -> None:
        """Record the file that made the experiment, and the libraries' versions; Sacred itself would record this file."""
        if "__file__" in maker:
            self.base_dir = str(Path(maker["__file__"]).resolve().parent)
            self.mainfile, self.sources, _ = gather_sources_and_dependencies(maker, self.save_git_info, self.base_dir)
        versions = {name: version for name, version in library_versions().items() if name != "python"}
        self.dependencies = {PackageDependency(*each) for each in versions.items() if each[1] != MISSING}

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
        observers, locks, handlers = self.observers, [], _LOGGER.handlers
        self.current_run = None
        try:
            given, options = _file_storage(dict(config_updates or {}), dict(options or {}))
            given = self.prepared(given, named_configs)
            runs_dir = _runs_dir(given)
            reopen = None
            if given.get("resume") is not None:
                reopen = find_run(runs_dir, given["resume"])
                locks += [lock_run(reopen)] if is_first() else []
                given = self._resumed(reopen, command_name or self.default_command, given, named_configs)
                named_configs = ()
            check_options(options)
            folder = RunFolder(runs_dir, reopen, self._begun)
            self.observers = [folder, *observers] if is_first() else []
            self.logger = _logger()
            options["--capture"] = options.get("--capture") or "sys"
            meta_info = {"named_configs": list(named_configs), **(meta_info or {})}
            with (
                nullcontext() if is_first() else redirect_stdout(io.StringIO()),
                self._files_as_named(named_configs) as names,
            ):
                return super().run(command_name, given, names, info, meta_info, options)
        except SacredError:
            raise
        except MISTAKES as error:
            raise RunError(f"{self._told(error)}{self._trace_hint()}") from error
        except KeyError as error:
            if "Invalid key" not in str(error):  # Sacred's word for the name of a nested setting that it refuses
                raise
            raise RunError(str(error.args[0])) from error
        finally:
            for lock in (*locks, *(each.lock for each in self.observers if isinstance(each, RunFolder))):
                if lock is not None:
                    lock.release()
            self.observers, _LOGGER.handlers = observers, handlers  # of the run, perhaps, that this one is a part of

    def _begun(self, id: str) -> None:
        """A run has its folder, of this id."""
        setattr(self.current_run, "_id", id)  # noqa: B010  (which may be none, to the eye of a type checker)
        if self.begun is not None:
            self.begun(id)

    def prepared(self, config_updates: Mapping[str, Any] | None, named_configs: Sequence[str] = ()) -> dict[str, Any]:
        """The given settings, once the modules of `use` are imported, a resumed run's among them.

        Raises:
            RunError: a module that cannot be imported, a named config or a setting that is not there, or no such run.
        """
        given = dict(config_updates or {})
        try:
            if given.get("resume") is not None:
                check_links(find_run(_runs_dir(given), given["resume"]))
            if given.get("use"):
                given["use"] = use(given["use"])
                for named in self._named:
                    self._add_named(named)
            self._files = {name: _nested(read_config_file(name), name) for name in named_configs if Path(name).is_file()}
            words = [name for name in named_configs if name not in self._files]
            for name in words:
                if Path(name).suffix in CONFIG_FILES:
                    raise FileNotFoundError(f"no settings file {Path(name).absolute()}: check the path")
            check_names(
                words, self.named_configs, "named config", own=True, listing=typed(f"{self.path} print_named_configs")
            )
            for file, settings in self._files.items():
                modules = dict.fromkeys(unknown_modules(settings))
                ask_to_repeat(f"{file} was written", {"use": ",".join(modules)} if modules else {})
        except MISTAKES as error:
            raise RunError(str(error)) from error
        return {name: value for name, value in given.items() if name != "use" or value}

    def named_settings(self, named_configs: Sequence[str]) -> dict[str, Any]:
        """What the named configs and files of settings set, later ones over earlier ones."""
        return {k: v for part in self.named_parts(named_configs) for k, v in part.items()}

    def named_parts(self, named_configs: Sequence[str]) -> list[dict[str, Any]]:
        """What each of the named configs and files of settings sets; files are those that `prepared` read."""
        return [
            self._files[name] if name in self._files else dict(self.named_configs[name]())
            for name in named_configs
            if name in self._files or name in self.named_configs
        ]

    @contextmanager
    def _files_as_named(self, named_configs: Sequence[str]) -> Iterator[list[str]]:
        """The named configs with files of settings among them, which Sacred does not read by itself, under other names."""
        names = {file: f"file {number}" for number, file in enumerate(self._files)}
        try:
            for file, name in names.items():
                self.add_named_config(name, self._files[file])
            yield [names.get(name, name) for name in named_configs]
        finally:
            for name in names.values():
                self.named_configs.pop(name, None)

    def add_settings(self, cls: type[Settings], check: Callable[[Settings], object] | None = None) -> None:
        """Take the settings of a dataclass, and refuse wrong ones before a run begins.

        Args:
            cls: The dataclass; every field has a default.
            check: Raises for what it cannot know by itself. It may load model and data, and is not called where settings
                are only printed.
        """
        self.settings = cls
        self.add_config(plain(dataclasses.asdict(cls())))

        @self.config_hook
        def _(config: dict[str, Any], command_name: str, logger: Any) -> dict[str, Any]:
            del logger
            own = {k: v for k, v in config.items() if (command_name, k) != ("save_config", "config_filename")}
            settings = build(cls, own)
            if check is not None and command_name == self.default_command:
                with waiting("reading model and data"):
                    check(settings)
            return {}

    def add_named_configs(self, named: NamedConfigs) -> None:
        """Add the named configs that `named` returns: now, and what it has more once a person's modules are imported."""
        self._named = (*self._named, named)
        self._add_named(named)

    def _add_named(self, named: NamedConfigs) -> None:
        for name, settings in named().items():
            if name not in self.named_configs:
                self.add_named_config(name, dict(settings))

    def add_problems(self) -> None:
        """Named configs `meter_vqa`, ...: the settings `model` and `task` of every environment."""
        self.add_named_configs(
            lambda: {name: {"model": entry.model, "task": entry.task} for name, entry in named_environments().items()}
        )

    def run_commandline(self, argv: Sequence[str] | None = None) -> Run | None:
        """As Sacred's own; words that cannot be read end with exit code 2, an interrupt with the command that resumes."""
        words = list(sys.argv if argv is None else argv)
        names = [field.name for field in dataclasses.fields(self.settings or RunSettings)]
        wrong = flag_mistake(words[1:], self.path, names)
        wrong = wrong or meant(words[1:], self.path, (*self.siblings, *self.commands), self.named_configs)
        if wrong is not None:
            print(f"error: {wrong}", file=sys.stderr)
            sys.exit(2)
        before = words[1 : words.index("with")] if "with" in words else words[1:]
        if set(before) & set(HELP):
            print(self.help_text())
            return None
        setattr(self, "run", partial(_plainly, self.run))  # noqa: B010  (which Sacred calls)
        try:
            return super().run_commandline(words)
        except KeyboardInterrupt as interrupt:
            if (command := self.resume_command()) is not None:
                interrupt.add_note(f"Go on with: {command}")
                if world() > 1:
                    interrupt.add_note(f"in {world()} processes, as it was begun")
            if is_first():
                print(stop_message(interrupt), file=sys.stderr)
            sys.exit(exit_code(interrupt))
        except SystemExit as end:
            if not isinstance(end.code, str):  # docopt's usage, of a program called "dummy"
                raise
            print(f"error: cannot read {' '.join(words[1:])!r}; `{typed(self.path)} --help` says how", file=sys.stderr)
            sys.exit(2)
        finally:
            delattr(self, "run")

    def help_text(self) -> str:
        """Return what the command does, its settings, named configs and options, in 80 columns."""
        module = sys.modules.get(self.commands[self.default_command].__module__)
        parts = [help_text(self.settings or RunSettings, getattr(module, "__doc__", None))]
        named = [name for name in self.named_configs if not name.startswith("file ")]
        if named:
            parts.append("\nNamed configs, words behind `with` that stand for several settings:\n")
            parts.append(textwrap.fill(", ".join(named), 80, initial_indent="  ", subsequent_indent="  "))
        parts.append("\nIn the place of `with` or before it:\n")
        rows = {name: inspect.getdoc(each) or "" for name, each in self.commands.items() if name != self.default_command}
        for option in self.all_cli_options:
            short, long = option.get_flags()
            if long not in REFUSED:
                rows[f"{short} {long}{'=VALUE' if option.arg else ''}"] = option.get_description()
        for name, text in rows.items():
            sentence = " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
            parts.append(textwrap.fill(sentence, 80, initial_indent=f"  {name:<26} ", subsequent_indent=" " * 29))
        return "\n".join(parts)

    def _resumed(self, folder: Path, command: str, given: dict[str, Any], named_configs: Sequence[str]) -> dict[str, Any]:
        """All settings of the run in `folder`; refuses a run that cannot be resumed by `command` with what is `given`."""
        known = self._known(folder)
        name = f"{known['experiment']['name']} {known['command']}"
        begun = typed(name) if is_ours(name) else repr(name)
        if (known["experiment"]["name"], known["command"]) != (self.path, command):
            raise RunError(
                f"run {folder.name} was begun by `{begun}`: resume it by that, not by `{typed(f'{self.path} {command}')}`"
            )
        if known["status"] == "COMPLETED":
            raise RunError(f"run {folder.name} is complete, there is nothing to resume; its results are in {folder}")
        settings = _nested(read_config(folder), folder / CONFIG)
        parts = (*self.named_parts(named_configs), given)
        flat = (pair for part in parts for pair in iterate_flattened(plain(part)))
        asked = {k: v for k, v in flat if k.partition(".")[0] not in ("resume", "runs_dir", "use")}
        for key, value in asked.items():
            stored = get_by_dotted_path(settings, key)
            if stored != value and key.partition(".")[0] in settings:  # an unknown key is refused as in any run
                raise RunError(
                    f"run {folder.name} was started with {key}={stored} and cannot be resumed with {key}={value}; "
                    f"leave {key} out to go on with the run, or leave resume out to begin a new one"
                )
        recorded = build(RunSettings, {"use": settings.get("use") or ()}).use
        unknown = unknown_modules({"use": recorded})
        rest = {name: value for name, value in settings.items() if name != "use"}
        sensitive = sensitive_settings(rest, {*sys.modules, *recorded})  # `use=` confirms an agent of its module, too
        missing = {name: value for name, value in sensitive.items() if name not in asked}
        path = self.path if command == self.default_command else f"{self.path} {command}"
        words = f"resume={folder.name}", runs_dir_words(folder), *setting_words({**asked, **missing}, {})
        named = {"use": ",".join(unknown)} if unknown else {}
        ask_to_repeat(f"run {folder.name} was started", {**named, **missing}, typed(path, *words, modules=unknown))
        modules = tuple(dict.fromkeys((*given.get("use", ()), *use(recorded))))
        kept = {"resume": given["resume"], "runs_dir": str(folder.parent), **({"use": modules} if modules else {})}
        return {**given, **settings, **kept}

    def _known(self, folder: Path) -> dict[str, Any]:
        """What `run.json` says: `experiment.name`, `command` and `status`, texts."""
        known = read_json(folder / "run.json")
        try:
            told = all(isinstance(word, str) for word in (known["experiment"]["name"], known["command"], known["status"]))
        except (KeyError, TypeError):
            told = False
        if not told:
            raise ValueError(f"{folder / 'run.json'} is damaged: it does not say what was run; begin a new run")
        return dict(known)

    def resume_command(self) -> str | None:
        """Return the command that resumes the last run; None where it left nothing to resume."""
        run = self.current_run
        if run is None or run._id is None or run.status == "COMPLETED" or "resume" not in run.config:
            return None
        command, runs_dir = run.meta_info["command"], run.config["runs_dir"]
        path = self.path if command == self.default_command else f"{self.path} {command}"
        repeated = {name: value for name, value in sensitive_settings(run.config, used()).items() if name != "use"}
        return typed(path, f"resume={run._id}", runs_dir_words(Path(runs_dir) / str(run._id)), *setting_words(repeated, {}))

    def command_with(self, named_configs: Sequence[str], settings: Mapping[str, Any]) -> str:
        """Return this command with named configs and settings, as it is typed."""
        values = iterate_flattened({name: value for name, value in settings.items() if name != "use"})  # `typed` adds that
        return typed(self.path, *map(shlex.quote, (*named_configs, *(f"{name}={value}" for name, value in values))))

    def _told(self, error: BaseException) -> str:
        """An error in words; of a full disk, and of an output that nobody reads, also how to go on."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            return str(error)
        command = self.resume_command()
        go_on = "" if command is None else f", then go on with `{command}`"
        if error.errno == errno.EPIPE:
            return f"nobody reads the output any more: let it go elsewhere{go_on}"
        return f"{error.filename or 'a file'} cannot be written ({error.strerror}): make room{go_on}"

    def _trace_hint(self) -> str:
        run = self.current_run
        folder = None if run is None else run_folder(run)
        return "" if folder is None else f"\n(the whole trace is in {folder / 'run.json'})"


def _plainly(run: Callable[..., Run], *args: Any, options: Mapping[str, Any], **kwargs: Any) -> Run:
    """As `run`, but a mistake ends in a line of its own, before which Sacred would print the exception's name."""
    try:
        return run(*args, options=options, **kwargs)
    except RunError as error:
        if options.get("--debug") or options.get("--pdb"):
            raise
        print(f"error: {shown(as_typed(str(error)))}", file=sys.stderr)
        sys.exit(unread() if isinstance(error.__cause__, BrokenPipeError) else 1)


def _nested(settings: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Take dotted names in the settings of a file apart, as Sacred does: what is checked is what a run gets.

    Raises:
        ValueError: Sacred would take the result apart once more, or cannot read it.
    """
    try:
        nested: dict[str, Any] = convert_to_nested_dict(settings)
        if nested == convert_to_nested_dict(nested):
            return nested
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{source} names settings twice, or by numbers ({error}); mend it") from error
    raise ValueError(f"{source} has a setting with an empty name; mend it")


def _file_storage(given: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and options, with Sacred's `-F FOLDER` as what it means here, `runs_dir`: the run is kept there alone.

    Raises:
        ValueError: both are given.
    """
    folder = options.pop("--file_storage", None)
    if folder is None:
        return given, options
    if "runs_dir" in given:
        raise ValueError(f"-F {folder} and runs_dir={given['runs_dir']} both say where runs go; give one of them")
    return {**given, "runs_dir": folder}, options


def _runs_dir(given: Mapping[str, Any]) -> Path:
    """The folder of all runs.

    Raises:
        ValueError: an empty name.
    """
    runs_dir = given.get("runs_dir", RUNS_DIR)
    if not str(runs_dir).strip():
        raise ValueError(f"runs_dir= is empty; give a folder, or leave it out for {RUNS_DIR}")
    return Path(runs_dir)


_LOGGER = logging.getLogger("das_gym.experiment")


def _logger() -> logging.Logger:
    """Sacred's messages on standard error; left alone, Sacred would turn up the messages of every library.

    Three are left out: its warnings of a new entry (a mapping such as `env_kwargs` may get some) and of another type
    (`skip_num` is "auto" or a number), since settings are checked by us; and the bare number it calls the result (commands
    print a conclusion).
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
    left_out = ("Added new config entry", "Changed type of config entry", "Result: ")
    handler.addFilter(lambda record: not record.getMessage().startswith(left_out))
    _LOGGER.handlers = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO if is_first() else logging.ERROR)  # one of several processes tells
    return _LOGGER


def required_folder(run: Run) -> Path:
    """The folder of a run that cannot do without one: that of the first process, where several train together.

    Raises:
        ValueError: the run is not observed.
    """
    folder = of_first(lambda: run_folder(run))
    if folder is None:
        raise ValueError("this command keeps checkpoints and results in its run folder: leave --unobserved (-u) out")
    return folder


def run_folder(run: Run) -> Path | None:
    """The folder that a started run writes to; None for one that is not observed (`--unobserved`)."""
    folders = [observer.dir for observer in run.observers if isinstance(observer, RunFolder)]
    return Path(folders[0]) if folders and folders[0] else None
