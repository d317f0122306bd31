"""The search benchmarks register further agents: each test leaves the table of agents as it was."""

from collections.abc import Iterator

import pytest
from das_gym.agents.ask_tell.base import AGENTS

from tests.registered import as_before


@pytest.fixture(autouse=True)
def same_agents_afterwards() -> Iterator[None]:
    with as_before(AGENTS):
        yield
