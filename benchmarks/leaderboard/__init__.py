"""The leaderboard: every agent on the bundled tables, the suite and planted problems."""
