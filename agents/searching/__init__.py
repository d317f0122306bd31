"""The search loop, its settings and its record, and what scores masks."""
