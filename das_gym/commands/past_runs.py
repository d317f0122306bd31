"""`python -m agents runs`: past runs of every command, the newest first.

python -m agents runs                              in runs/
python -m agents runs with runs_dir=DIR limit=100
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from das_gym.commands.commandline import format_command, format_settings, is_our_program
from das_gym.commands.runs import CONFIG, RUNS_DIR, PluginSettings, is_locked, runs_dir_setting
from das_gym.commands.settings import PositiveInt
from das_gym.files import read_json, read_json_object

STATES = {"COMPLETED": "done", "FAILED": "failed", "INTERRUPTED": "stopped", "RUNNING": "running"}
"""Sacred's names of the states of a run, and ours. A run whose process was killed has `died`."""

STALE_HEARTBEAT = timedelta(minutes=2)
"""Age of the last heartbeat after which a run without a readable lock is dead. Sacred writes one every 10 s."""

NOT_REPEATED = ("runs_dir", "resume", "plugins", "save_every")
"""Settings that do not change the result of a run, or that `format_command` adds."""

COLUMNS = ("run", "started (UTC)", "status", "command", "agent", "environment", "result")


@dataclass(frozen=True)
class RunsSettings(PluginSettings):
    """The settings of `python -m agents runs`.

    Attributes:
        runs_dir: Folder of all runs.
        limit: Number of runs to show.
    """

    runs_dir: str = RUNS_DIR
    limit: PositiveInt = 30


def past_runs(runs_dir: str) -> list[dict[str, str]]:
    """Return the cells of each run by `COLUMNS`, the newest first; `resume` is its setting, if it can be resumed."""
    if not Path(runs_dir).is_dir():
        raise FileNotFoundError(f"`runs_dir` does not exist: got {Path(runs_dir).absolute()}. Run something first.")
    files = [path for path in Path(runs_dir).glob("*/run.json") if path.parent.name.isdecimal()]
    return [_read(path) for path in sorted(files, key=lambda path: -int(path.parent.name))]


def _read(path: Path) -> dict[str, str]:
    """Return the cells of one run; one with damaged files is listed as damaged."""
    folder = path.parent
    try:
        run = read_json(path)
        config = read_json(folder / CONFIG)
        status = STATES.get(run["status"], str(run["status"]).lower())
        if status == "running" and not _is_alive(folder, run):
            status = "died"
        problem = config.get("problem", {})
        env = config.get("env_id") or f"{problem.get('model', '')} {problem.get('task', '')}".strip()
        if config.get("search_run") is not None:  # a run that follows a search has the search's problem
            env = f"as run {config['search_run']}"
        result = run.get("result")
        cells = {
            "started (UTC)": str(run["start_time"])[:16].replace("T", " "),
            "status": status,
            "command": run["experiment"]["name"],
            "agent": config.get("agent") or "-",
            "environment": str(env or "-").removeprefix("DAS-").removesuffix("-v0"),
            "result": f"{result:.4f}" if isinstance(result, int | float) else "-",
            "resume": f"resume={folder.name}" if status in ("died", "stopped") and "resume" in config else "",
        }
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        cells = {"status": "damaged"}
    # Records are untrusted: a control character could rewrite the terminal.
    printable = {name: "".join(c if c.isprintable() else "?" for c in str(cell)) for name, cell in cells.items()}
    return dict.fromkeys((*COLUMNS, "resume"), "") | printable | {"run": folder.name}


def _is_alive(folder: Path, run: Mapping[str, Any]) -> bool:
    """Return True if the process of a run is alive.

    A lock that is held proves it. A free lock disproves it only on the run's own machine, since some shared file systems
    keep locks local. Otherwise the age of the heartbeat decides.
    """
    locked = is_locked(folder)
    same_machine = run.get("host", {}).get("hostname") == platform.node()
    if locked is not None and (locked or same_machine):
        return locked
    beat = datetime.fromisoformat(run.get("heartbeat") or run["start_time"])
    return datetime.now(UTC).replace(tzinfo=None) - beat < STALE_HEARTBEAT


def main(settings: RunsSettings) -> None:
    """Print the list, and the commands that resume stopped runs."""
    runs = past_runs(settings.runs_dir)
    shown = runs[: settings.limit]
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *shown]
    widths = {name: max(len(row[name]) for row in rows) for name in COLUMNS}
    for row in rows:
        print("  ".join(row[name].ljust(widths[name]) for name in COLUMNS).rstrip())
    for run in shown:
        if run["resume"] and is_our_program(run["command"]):
            words = run["resume"], runs_dir_setting(Path(settings.runs_dir) / run["run"])
            print(f"run {run['run']} {run['status']}. Resume it with: {format_command(run['command'], *words)}")
    if len(runs) > len(shown):
        print(f"{len(runs) - len(shown)} more: limit={len(runs)} shows all")


def rerun_command(folder: Path, command: str, cls: type, defaults: Mapping[str, Any], **changes: Any) -> str:
    """Return the command with settings `cls` that repeats a run, without `defaults`.

    `changes` replace the run's settings; None leaves one out.
    """
    known = {**run_settings(folder), **changes}
    chosen = {name: value for name, value in known.items() if name not in NOT_REPEATED and value is not None}
    return format_command(command, *format_settings(chosen, defaults, cls))


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; empty if its folder has none."""
    path = folder / CONFIG
    return read_json_object(path) if path.is_file() else {}
