"""Agents against each other: on tables, which know every mask, or live."""
