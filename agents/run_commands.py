"""The commands of `python -m agents` that keep runs. Settings are checked before torch and the commands are imported."""

from __future__ import annotations

from typing import Any

from das_gym.agents import settings

from das_gym.commands.recorded import RecordedCommand
from das_gym.registration import named_environments, named_problems


def problem_configs() -> dict[str, dict[str, Any]]:
    """Return the named configs of environments and of their tables."""
    entries = named_environments()
    tables = {f"{name}_table": {"env_id": entry.tabular_id} for name, entry in entries.items()}
    return {name: {"env_id": entry.id} for name, entry in entries.items()} | tables


search = RecordedCommand(
    "agents",
    settings.SearchSettings,
    "das_gym.agents.search_experiment:search_mask",
    named_configs=lambda: {**problem_configs(), **settings.agent_configs()},
    complete=settings.complete_search,
)
pareto = RecordedCommand(
    "agents pareto",
    settings.ParetoSettings,
    "das_gym.agents.pareto_experiment:search_front",
    problem_configs,
    complete=settings.add_environment,
)
table = RecordedCommand("agents table", settings.TableSettings, "das_gym.agents.table_experiment:make_table", named_problems)
compare = RecordedCommand(
    "agents compare",
    settings.CompareSettings,
    "das_gym.agents.compare_experiment:compare_agents",
    problem_configs,
    complete=settings.add_environment,
)
