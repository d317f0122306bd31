"""`python -m adapt`, and its commands `das`, `pretrain` and `supernet`."""

from __future__ import annotations

import sys
from typing import Any

HELP = """\
python -m adapt [with ...]             search a mask, fine-tune it, set it beside the unskipped model
python -m adapt das [with ...]         the paper's pipeline: search while adapters train, then fine-tune
python -m adapt pretrain [with ...]    pre-train METER-mini or ViLT-mini
python -m adapt supernet [with ...]    train adapters and head over random masks
Each takes `with name=value ...`, and shows its settings after `print_config`.
"""


def search_first(settings: dict[str, Any]) -> int:
    """Run a search and return its run id; if it is interrupted, say how to go on."""
    from das_gym.agents.search_experiment import ex, run_search

    try:
        return int(run_search(settings)[0])
    except KeyboardInterrupt:
        if ex.current_run is not None and ex.current_run._id is not None:
            run = ex.current_run._id
            print(f"Stopped. Go on with: python -m agents with resume={run}", file=sys.stderr)
            print(f"and then: python -m adapt with search_run={run}", file=sys.stderr)
        raise


def searching_agents() -> dict[str, dict[str, Any]]:
    """Name of every agent to the settings of `python -m agents` that its name alone stands for."""
    from das_gym.agents.ask_tell.base import AGENTS
    from das_gym.agents.sb3.algorithms import ALGORITHMS
    from das_gym.agents.sb3.config import SB3_DEFAULTS

    return {name: {"agent": name, **(SB3_DEFAULTS if name in ALGORITHMS else {})} for name in (*AGENTS, *ALGORITHMS)}


def paper_bandit(n_layers: int, skip_num: int, seed: int, update_rate: float) -> Any:
    """The paper's agent."""
    from das_gym.agents.ask_tell.bandit import Bandit

    from das_gym.problem.budget import Budget
    from das_gym.problem.mask_space import MaskSpace

    return Bandit(MaskSpace(Budget(n_layers, skip_num)), seed, learning_rate=update_rate)


def main(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    argv = sys.argv if argv is None else argv
    command = argv[1] if len(argv) > 1 else ""
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
    elif command == "das":
        from das_gym.adapt.das_experiment import DASExperiment

        DASExperiment(paper_bandit).run_commandline([argv[0], *argv[2:]])
    elif command == "pretrain":
        from das_gym.adapt.pretrain_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    elif command == "supernet":
        from das_gym.adapt.supernet_experiment import ex

        ex.run_commandline([argv[0], *argv[2:]])
    else:
        from das_gym.adapt.adapt_experiment import AdaptExperiment

        AdaptExperiment(search_first, searching_agents()).run_commandline(argv)
