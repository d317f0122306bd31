"""Compare search agents on planted losses and on tables of real models: `python -m benchmarks.search`."""
