"""`python -m agents`: see `agents.experiment`."""

from agents.experiment import ex

if __name__ == "__main__":
    ex.run_commandline()
