"""Generated answers: the task, its readers, its metric."""
