"""`python -m benchmarks.pretrain`."""

from __future__ import annotations

import sys

from das_gym.commandline import Command, Program

if __name__ == "__main__":
    program = Program(
        "benchmarks.pretrain", {"run": Command("benchmarks.pretrain.experiment:ex", "", "")}, "run", runs_alone=True
    )
    sys.exit(program.run(sys.argv[1:]))
