"""`python -m agents list`: environments, agents, rewards and layer statistics, by the names that settings take."""

import inspect

from das_gym.agents.ask_tell.base import AGENTS, agent_class, agent_hyperparameters
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.settings import SEARCH_DEFAULTS

from das_gym.commands.commandline import format_command
from das_gym.commands.runs import PluginSettings
from das_gym.drawing.report import Console, Table
from das_gym.problem.rewards import PRICE_FORMULA, REWARDS
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import CHECKPOINT_TABLES, ENVIRONMENTS

PIPED_WIDTH = 200
"""Columns of output that does not go to a terminal."""


def main(settings: PluginSettings) -> None:
    """Print the names of environments, agents, rewards and statistics, with those of plugins."""
    del settings  # its plugins are imported: their names are listed, too
    console = Console()
    for table in tables():
        table.print(console.width if console.is_terminal else PIPED_WIDTH)
        print()


def tables() -> list[Table]:
    """Return the tables of environments, agents, rewards and statistics."""
    environments = [
        (entry.id, entry.short, "-" if entry.table is None else entry.tabular_id) for entry in ENVIRONMENTS.values()
    ]
    environments += [("", "", id) for id in CHECKPOINT_TABLES]
    agents = [(name, _hyperparameters(name), docstring_summary(agent_class(name))) for name in AGENTS]
    algorithms = [(known.name, known.path, ", ".join(known.actions)) for known in ALGORITHMS.values()]
    rewards = [(reward.name, reward.formula, reward.range) for reward in REWARDS.values()]
    statistics = [(known.name, known.formula, f"{known.low:g}..{known.high:g}") for known in STATISTICS.values()]
    with_agent = format_command("agents", "<name>", "agent_kwargs.<setting>=...")
    price = f"With env_kwargs.macs_price=...: {PRICE_FORMULA}."
    contents = [
        (f"environments: {format_command('agents', '<short>')}", ("id", "short", "its table"), environments, ()),
        (f"agents: {with_agent}", ("name", "settings", "what it is"), agents, ()),
        (f"algorithms of SB3: {with_agent}", ("name", "class", "action spaces"), algorithms, ()),
        ("rewards: reward=<name>", ("name", "formula", "range"), rewards, (price,)),
        ("layer statistics: env_kwargs.statistics='[\"<name>\", ...]'", ("name", "formula", "range"), statistics, ()),
    ]
    return [Table(columns, tuple(rows), title, notes, (0, 1, 2)) for title, columns, rows, notes in contents]


def _hyperparameters(agent: str) -> str:
    values = agent_hyperparameters(agent) | SEARCH_DEFAULTS.get(agent, {})
    return "\n".join(f"{name}={value}" for name, value in values.items())


def docstring_summary(cls: type) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
