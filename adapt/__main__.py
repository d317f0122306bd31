"""`python -m adapt`, `python -m adapt pretrain`, `python -m adapt supernet`."""

from __future__ import annotations

import sys

HELP = """\
python -m adapt [with ...]             search a mask, fine-tune it, set it beside the unskipped model
python -m adapt pretrain [with ...]    pre-train METER-mini
python -m adapt supernet [with ...]    train adapters and head over random masks
Each takes `with name=value ...`, and shows its settings after `print_config`.
"""


def main(argv: list[str]) -> None:
    """Run the command that the arguments name."""
    command = argv[1] if len(argv) > 1 else ""
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
    elif command == "pretrain":
        from adapt.pretrain_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    elif command == "supernet":
        from adapt.supernet_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    else:
        from adapt.experiment import ex
        from agents.experiment import run_search

        ex.search_first = lambda settings: int(run_search(settings)[0])
        ex.run_commandline(argv)


if __name__ == "__main__":
    main(sys.argv)
