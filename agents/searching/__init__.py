"""The search loop, its record, and replaying a record."""
