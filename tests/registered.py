"""Models, tasks and environments as they were, whatever a test registers."""

from collections.abc import Iterator
from contextlib import contextmanager

import das_gym.registration as registration


@contextmanager
def as_before() -> Iterator[None]:
    """Take back what is registered within."""
    tables = (registration.MODELS, registration.TASKS, registration.ENVIRONMENTS, registration.registry)
    before = [(table, dict(table)) for table in tables]
    try:
        yield
    finally:
        for table, content in before:
            table.clear()  # type: ignore[attr-defined]
            table.update(content)  # type: ignore[attr-defined]
