"""`python -m agents list`: environments, agents, rewards and layer statistics, by the names that settings take."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from das_gym.agents.ask_tell.base import AGENTS, agent_class
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.searching.agent_setup import SEARCH_DEFAULTS
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

ROOMY = 170
"""Width in columns of the complete table of environments. Narrower ones leave columns out."""

WIDE = 200
"""Least width in columns of output that does not go to a terminal."""


def environments(columns: int = ROOMY) -> Table:
    """Return a table of ids with named config, model, task, layers of the bundled table, and data; fewer in few columns."""
    title = f"environments: gymnasium.make(id), {format_command('agents', '<short>')}"
    first = next(iter(ENVIRONMENTS.values()))
    others = f"many problems: {', '.join(SUITE_IDS)}\nmany objectives: {many_objectives(first.id)}, and so on\n"
    others += f"tables of further checkpoints: {', '.join(CHECKPOINT_TABLES)}"
    if columns < ROOMY:
        table = _table(title, "id", "short", "layers", whole=3)
        table.caption = f"from a bundled table, where layers are listed: meter_vqa_table, ...\n{others}"
        for entry in ENVIRONMENTS.values():
            table.add_row(entry.id, entry.short, _layers(entry))
        return table
    table = _table(title, "id", "from a table", "short", "model", "task", "layers", "data", whole=5)
    table.caption = others
    for entry in ENVIRONMENTS.values():
        tabular = entry.tabular_id if entry.table is not None else "-"
        table.add_row(entry.id, tabular, entry.short, entry.model, entry.task, _layers(entry), entry.data)
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


def agents() -> Table:
    """Return a table of agents with their hyperparameters."""
    title = f"agents: {format_command('agents', '<name>', 'agent_kwargs.<setting>=...')}"
    table = _table(title, "name", "settings", "what it is", whole=2)
    for name in AGENTS:
        cls = agent_class(name)
        own = list(inspect.signature(cls).parameters.values())[2:]  # after space, seed
        values = {p.name: p.default for p in own if p.name not in ("statistics", "blocks")} | SEARCH_DEFAULTS.get(name, {})
        table.add_row(name, "\n".join(f"{key}={value}" for key, value in values.items()), first_line(cls))
    return table


def algorithms() -> Table:
    """Return a table of the algorithms of Stable-Baselines3."""
    title = f"algorithms of SB3: {format_command('agents', '<name>', 'agent_kwargs.<setting>=...')}"
    table = _table(title, "name", "class", "action spaces", whole=3)
    for algorithm in ALGORITHMS.values():
        table.add_row(algorithm.name, algorithm.path, ", ".join(algorithm.actions))
    return table


def first_line(cls: type) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def rewards() -> Table:
    """Return a table of rewards with their formulas."""
    table = _table("rewards: reward=<name>", "name", "formula", "range")
    table.caption = f"macs_price=... adds to each: {PRICE_FORMULA}"
    for reward in REWARDS.values():
        table.add_row(reward.name, reward.formula, reward.range)
    return table


def statistics() -> Table:
    """Return a table of layer statistics with their formulas."""
    table = _table("layer statistics: env_kwargs.statistics='[<name>, ...]'", "name", "formula", "range")
    for statistic in STATISTICS.values():
        table.add_row(statistic.name, statistic.formula, f"{statistic.low:g}..{statistic.high:g}")
    return table


def _table(title: str, *columns: str, whole: int = 1) -> Table:
    """Return an empty table. Entries of its first `whole` columns are not wrapped, so that they can be copied."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=index < whole)
    return table


@dataclass(frozen=True)
class ListSettings(PluginSettings):
    """The settings of `python -m agents list`."""


def main(settings: ListSettings) -> None:
    """Print all tables."""
    console = Console()
    console.width = max(console.width, NARROWEST if console.is_terminal else WIDE)
    for table in (environments(console.width), agents(), algorithms(), rewards(), statistics()):
        console.print(table, "")
