"""`python -m adapt`, `python -m adapt pretrain`, `python -m adapt supernet`."""

from __future__ import annotations

import sys
from typing import Any

HELP = """\
python -m adapt [with ...]             search a mask, fine-tune it, set it beside the unskipped model
python -m adapt pretrain [with ...]    pre-train METER-mini
python -m adapt supernet [with ...]    train adapters and head over random masks
Each takes `with name=value ...`, and shows its settings after `print_config`.
"""


def search_first(settings: dict[str, Any]) -> int:
    """Run a search and return its run id; if it is interrupted, say how to go on."""
    from agents.experiment import ex, run_search

    try:
        return int(run_search(settings)[0])
    except KeyboardInterrupt:
        if ex.current_run is not None and ex.current_run._id is not None:
            run = ex.current_run._id
            print(f"Stopped. Go on with: python -m agents with resume={run}", file=sys.stderr)
            print(f"and then: python -m adapt with search_run={run}", file=sys.stderr)
        raise


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

        ex.search_first = search_first
        ex.run_commandline(argv)


if __name__ == "__main__":
    main(sys.argv)
