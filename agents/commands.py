"""`python -m agents` and its commands."""

from __future__ import annotations

import sys

HELP = """\
python -m agents [with ...]            search which layers a task does not need
python -m agents table [with ...]      score every mask: ground truth for searches
python -m agents compare [with ...]    agents against each other on a table: regret and rank against evaluations
python -m agents leaderboard [...]     all agents on all bundled tables: writes LEADERBOARD.md
python -m agents validate FILE         replay a result record and compare
python -m agents list                  environments, agents, rewards, statistics
`with name=value ...` sets, `print_config` shows settings; the others take --help.
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    argv = sys.argv if argv is None else argv
    command = argv[1] if len(argv) > 1 else ""
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
    elif command == "table":
        from das_gym.agents.table_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    elif command == "compare":
        from das_gym.agents.compare_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    elif command == "leaderboard":
        from das_gym.agents.compare.leaderboard import main as leaderboard

        sys.exit(leaderboard(argv[2:]))
    elif command == "validate":
        from das_gym.agents.searching.validate import main as validate

        sys.exit(validate(argv[2:]))
    elif command == "list":
        from das_gym.agents.listing import main as list_all

        list_all()
    else:
        from das_gym.agents.search_experiment import ex

        ex.run_commandline(argv)
