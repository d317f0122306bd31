"""SNLI-VE: the task and its readers."""
