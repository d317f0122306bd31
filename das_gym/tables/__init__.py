"""Exhaustive tables: what every mask of a model scores."""
