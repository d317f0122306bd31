"""`python -m benchmarks.make_suite`."""

from __future__ import annotations

import sys

from benchmarks.make_suite.make import main

if __name__ == "__main__":
    main(sys.argv[1:])
