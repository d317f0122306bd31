"""Visual question answering: the task, its readers, its metric."""
