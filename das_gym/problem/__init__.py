"""A validation problem: model, task, data, budget, and all that a score depends on."""
