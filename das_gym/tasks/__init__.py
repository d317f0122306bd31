"""Downstream tasks: head, loss, metric."""
