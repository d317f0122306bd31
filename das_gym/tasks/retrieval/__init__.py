"""Image-text retrieval: the task and its readers."""
