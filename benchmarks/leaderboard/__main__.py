"""`python -m benchmarks.leaderboard`."""

from __future__ import annotations

import sys

from benchmarks.leaderboard.board import main

if __name__ == "__main__":
    main(sys.argv[1:])
