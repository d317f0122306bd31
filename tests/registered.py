"""Tables of what is registered as they were, whatever a test registers."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import das_gym.registration as registration

PROBLEMS: tuple[Any, ...] = (registration.MODELS, registration.TASKS, registration.ENVIRONMENTS, registration.registry)


@contextmanager
def as_before(*tables: MutableMapping[str, Any]) -> Iterator[None]:
    """Take back what is registered within in these tables; in those of models, tasks and environments by default."""
    before = [(table, dict(table)) for table in tables or PROBLEMS]
    try:
        yield
    finally:
        for table, content in before:
            table.clear()
            table.update(content)
