"""`python -m benchmarks.pretrain`."""

import sys

from das_gym.commandline import Command, Program

if __name__ == "__main__":
    commands = {"run": Command("benchmarks.pretrain.recipe:ex", "", "")}
    sys.exit(Program("benchmarks.pretrain", commands, "run", runs_alone=True).run(sys.argv[1:]))
