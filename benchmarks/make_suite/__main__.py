"""`python -m benchmarks.make_suite`."""

from benchmarks.make_suite.make import main

if __name__ == "__main__":
    main()
