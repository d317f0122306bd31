"""Tables of small models that the leaderboard searches, besides the bundled ones, and how they were made."""
