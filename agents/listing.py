"""`python -m agents list`: environments, agents, rewards and layer statistics, by the names that settings take."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from das_gym.agents.ask_tell.base import AGENTS, agent_class
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.searching.setup import SEARCH_DEFAULTS
from rich.table import Table

from das_gym.commandline import format_command
from das_gym.console import Console
from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.problem.rewards import PRICE_FORMULA, REWARDS
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import CHECKPOINT_TABLES, ENVIRONMENTS, SUITE_IDS, EnvEntry, many_objectives
from das_gym.runs import PluginSettings

NARROWEST = 80
"""Least width in columns. Narrower terminals wrap the lines."""

WIDE = 200
"""Least width in columns of output that does not go to a terminal."""


@dataclass(frozen=True)
class ListSettings(PluginSettings):
    """The settings of `python -m agents list`."""


def main(settings: ListSettings) -> None:
    """Print all tables."""
    console = Console()
    console.width = max(console.width, NARROWEST if console.is_terminal else WIDE)
    for table in tables():
        console.print(table, "")


def tables() -> list[Table]:
    """Return the tables of all names."""
    first = next(iter(ENVIRONMENTS.values()))
    notes = (
        "from a table, where layers are listed: meter_vqa_table, gymnasium.make("
        f'"{first.tabular_id}")\nmany problems: {", ".join(SUITE_IDS)}\n'
        f"many objectives: {many_objectives(first.id)}, and so on\n"
        f"tables of further checkpoints: {', '.join(CHECKPOINT_TABLES)}"
    )
    setting = "agent_kwargs.<setting>=..."
    return [
        _table(
            f"environments: gymnasium.make(id), {format_command('agents', '<short>')}",
            ("id", "short", "layers"),
            ((entry.id, entry.short, _layers(entry)) for entry in ENVIRONMENTS.values()),
            notes,
        ),
        _table(
            f"agents: {format_command('agents', '<name>', setting)}",
            ("name", "settings", "what it is"),
            ((name, _hyperparameters(name), first_line(agent_class(name))) for name in AGENTS),
        ),
        _table(
            f"algorithms of SB3: {format_command('agents', '<name>', setting)}",
            ("name", "class", "action spaces"),
            ((known.name, known.path, ", ".join(known.actions)) for known in ALGORITHMS.values()),
        ),
        _table(
            "rewards: reward=<name>",
            ("name", "formula", "range"),
            ((reward.name, reward.formula, reward.range) for reward in REWARDS.values()),
            f"macs_price=... adds to each: {PRICE_FORMULA}",
        ),
        _table(
            "layer statistics: env_kwargs.statistics='[<name>, ...]'",
            ("name", "formula", "range"),
            ((known.name, known.formula, f"{known.low:g}..{known.high:g}") for known in STATISTICS.values()),
        ),
    ]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Table:
    """Return a table. Names in its first column are not wrapped, so that they can be copied."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _layers(entry: EnvEntry) -> str:
    """Return the number of layers, and the first and last of each kind; "-" if no table is bundled."""
    try:
        names = load_table(bundled_table(entry.model, entry.task)).meta.layer_names
    except ValueError:
        return "-"
    kinds = dict.fromkeys(name.rpartition(".")[0] for name in names)
    own = {kind: [name for name in names if name.rpartition(".")[0] == kind] for kind in kinds}
    spans = [f"{layers[0]}..{layers[-1].removeprefix(f'{kind}.')}" for kind, layers in own.items()]
    return f"{len(names)}: {', '.join(spans)}"


def _hyperparameters(agent: str) -> str:
    own = list(inspect.signature(agent_class(agent)).parameters.values())[2:]  # after space, seed
    values = {p.name: p.default for p in own if p.name not in ("statistics", "blocks")} | SEARCH_DEFAULTS.get(agent, {})
    return "\n".join(f"{name}={value}" for name, value in values.items())


def first_line(cls: type) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
