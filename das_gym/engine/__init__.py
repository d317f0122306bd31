"""The engine: many masks of one frozen model, fast and exact."""
