"""`python -m agents runs`: past runs of every command, best first.

python -m agents runs                                   all in runs/, command by command
python -m agents runs with agent=bandit env=meter_vqa   searches by the bandit in environments of that name
python -m agents runs with status=failed order=newest   what failed, the newest first
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.agents.searching.record import RECORD
from rich import box
from rich.table import Table
from rich.text import Text

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.config import check_names
from das_gym.console import Console
from das_gym.files import read_json
from das_gym.registration import ENVIRONMENTS
from das_gym.runs import RUNS_DIR

ORDERS = ("best", "newest")
STATES = {"COMPLETED": "done", "FAILED": "failed", "INTERRUPTED": "stopped", "RUNNING": "running"}
"""What Sacred calls the states of a run, and what they are called here."""

DAMAGED = "damaged"
"""The state of a run whose files cannot be read."""

MODELS_RECORDS = ("adapt.json", "das.json", "shrink.json")
"""Records that hold a list of models."""

NARROWEST = 80


@dataclass(frozen=True)
class RunsSettings(CommandSettings):
    """The settings of `python -m agents runs`.

    Attributes:
        runs_dir: Folder of all runs.
        agent: Only searches by this agent.
        env: Only runs whose environment's short name holds this text, such as `meter` or `vqa_table`.
        command: Only runs of this command, such as `agents` or `adapt shrink`.
        status: Only runs of this state: `done`, `failed`, `stopped`, `running`, `damaged`.
        order: `best`, highest result first, command by command; or `newest`.
        most: How many are shown.
    """

    runs_dir: str = RUNS_DIR
    agent: str | None = None
    env: str | None = None
    command: str | None = None
    status: str | None = None
    order: str = "best"
    most: int = 30

    def __post_init__(self) -> None:
        check_names([self.order], ORDERS, "order")
        if self.status is not None:
            check_names([self.status], (*STATES.values(), DAMAGED), "status")
        if self.most < 1:
            raise ValueError(f"most={self.most} is not allowed; show 1 run or more")


@dataclass(frozen=True)
class PastRun:
    """A run as the list shows it.

    Attributes:
        id: Its folder's name.
        command: What was typed: `agents`, `adapt shrink`, ...
        agent: Who searched; "-" where nobody did.
        env: The environment's short name, `_table` behind it where a table answered.
        result: Reward of a search, test score of an adaptation; None where there is none.
        macs_saved: Share of the MACs; None where that is not recorded.
        status: `done`, `failed`, `stopped`, `running`, `damaged`.
        started: UTC, to the minute.
    """

    id: int
    command: str
    agent: str
    env: str
    result: float | None
    macs_saved: float | None
    status: str
    started: str


def past_runs(settings: RunsSettings) -> list[PastRun]:
    """The runs that the settings ask for, in their order.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(settings.runs_dir).is_dir():
        raise FileNotFoundError(f"no folder {Path(settings.runs_dir).absolute()}: run something first, or give runs_dir=")
    files = [path for path in Path(settings.runs_dir).glob("*/run.json") if path.parent.name.isdecimal()]
    runs = [run for run in map(_read, files) if _is_asked_for(run, settings)]
    runs.sort(key=lambda run: -run.id)
    if settings.order == "best":
        runs.sort(key=lambda run: (run.command, math.inf if run.result is None else -run.result))
    return runs


def _is_asked_for(run: PastRun, settings: RunsSettings) -> bool:
    exact = {name: getattr(settings, name) for name in ("agent", "command", "status")}
    same = all(wanted is None or getattr(run, name) == wanted for name, wanted in exact.items())
    return same and (settings.env is None or settings.env in run.env)


def _read(path: Path) -> PastRun:
    """What a run's files say; one damaged run hides no other."""
    try:
        return _told(path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        return PastRun(int(path.parent.name), "-", "-", "-", None, None, DAMAGED, "")


def _told(path: Path) -> PastRun:
    run, folder = read_json(path), path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    result, saved = run.get("result"), _saved(folder)
    return PastRun(
        id=int(folder.name),
        command=str(run["experiment"]["name"]),
        agent=str(config.get("agent") or "-"),
        env=_short(_problem(folder, config)),
        result=float(result) if isinstance(result, int | float) and math.isfinite(result) else None,
        macs_saved=None if saved is None else float(saved),
        status=STATES.get(run.get("status"), str(run.get("status")).lower()),
        started=str(run.get("start_time") or "")[:16].replace("T", " "),
    )


def _problem(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What names model and task: a run's record, or its settings unless they leave both to a search or a front."""
    records = (read_json(folder / name) for name in MODELS_RECORDS if (folder / name).is_file())
    told = next((record["problem"] for record in records if "problem" in record), None)
    if told is not None:
        return dict(told)
    left = any(config.get(name) is not None for name in ("search_run", "front"))
    return {} if left else config


def _short(config: Mapping[str, Any]) -> str:
    for entry in ENVIRONMENTS.values():
        if config.get("env_id") == entry.id or (config.get("model"), config.get("task")) == (entry.model, entry.task):
            return entry.short
        if config.get("env_id") == entry.tabular_id:
            return f"{entry.short}_table"
    return str(config.get("env_id") or "-")


def _saved(folder: Path) -> float | None:
    """Of what the run came to; None where its record does not say."""
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD).get("macs_saved")
    for name in MODELS_RECORDS:
        if (folder / name).is_file():
            models = read_json(folder / name)["models"]
            return models[-1 if name == "shrink.json" else 0]["macs_saved"]  # of the model that is kept
    return None


def printable(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def table_of(runs: Sequence[PastRun]) -> Table:
    """The runs as a table that fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption_justify="left")
    numbers = ("run", "result", "MACs\nsaved")
    for name in ("run", "command", "agent", "environment", "result", "MACs\nsaved", "status", "started\nUTC"):
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for run in runs:
        result = "-" if run.result is None else f"{run.result:.4f}"
        saved = "-" if run.macs_saved is None else f"{100 * run.macs_saved:.1f} %"
        cells = (str(run.id), run.command, run.agent, run.env, result, saved, run.status, run.started[5:])
        table.add_row(*(Text(printable(cell)) for cell in cells))  # what a record says is no markup of rich
    table.caption = "result: reward of a search (agents), score on test (adapt)"
    return table


def main(words: Sequence[str] = ()) -> int:
    """Print the list; the exit code."""
    settings = parse_or_help(RunsSettings, words, "agents runs")
    if settings is None:
        return 0
    runs = past_runs(settings)
    if not runs:
        print(f"no such run in {settings.runs_dir}")
        return 0
    console = Console()
    console.width = max(console.width, NARROWEST)
    console.print(table_of(runs[: settings.most]))
    if len(runs) > settings.most:
        print(f"{len(runs) - settings.most} more: most={len(runs)} shows all")
    return 0
