"""NLVR2: the task, its readers, its metric."""
