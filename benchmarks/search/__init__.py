"""Problems and rivals of search agents for `benchmarks.leaderboard`, and deeper masks: `python -m benchmarks.search`."""
