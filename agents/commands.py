"""`python -m agents` and its sub-commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from das_gym.commandline import Command, Program

PROGRAM = Program(
    "agents",
    {
        "search": Command("das_gym.agents.search_experiment:ex", "[with ...]", "search which layers a task does not need"),
        "pareto": Command(
            "das_gym.agents.pareto_experiment:ex", "[with ...]", "for every budget the best mask, from one search"
        ),
        "table": Command("das_gym.agents.table_experiment:ex", "[with ...]", "score every mask: ground truth for searches"),
        "compare": Command("das_gym.agents.compare_experiment:ex", "[with ...]", "agents against each other on a table"),
        "leaderboard": Command(
            "das_gym.agents.compare.leaderboard:main",
            "[with ...]",
            "all agents on all tables: writes LEADERBOARD.md",
        ),
        "blocks": Command(
            "das_gym.agents.block_measuring:main", "with table=...", "measure blocks of layers, for agents on a table"
        ),
        "validate": Command(
            "das_gym.agents.searching.validate:main", "with file=...", "replay the record of a search and compare"
        ),
        "list": Command(
            "das_gym.agents.listing:main", "[with use=...]", "environments, agents, rewards, statistics, by name"
        ),
    },
    main="search",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sub-command that the arguments name, and end with its exit code."""
    sys.exit(PROGRAM.run((sys.argv if argv is None else argv)[1:]))
