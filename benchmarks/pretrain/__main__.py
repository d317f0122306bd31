"""`python -m benchmarks.pretrain`."""

from __future__ import annotations

from benchmarks.pretrain.experiment import ex

if __name__ == "__main__":
    ex.run_commandline()
