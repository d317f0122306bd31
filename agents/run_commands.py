"""The commands of `python -m agents` that keep runs. Settings are checked before torch and the commands are imported."""

from typing import Any

import gymnasium
from das_gym.agents import settings

from das_gym.commands.recorded import RecordedCommand
from das_gym.names import check_names
from das_gym.problem.config import check_before_loading
from das_gym.registration import ENVIRONMENTS, env_entry, is_tabular, named_environments, named_problems


def problem_configs() -> dict[str, dict[str, Any]]:
    """Return the named configs of environments and of their tables."""
    entries = named_environments()
    tables = {f"{name}_table": {"env_id": entry.tabular_id} for name, entry in entries.items()}
    return {name: {"env_id": entry.id} for name, entry in entries.items()} | tables


def check_environment(given: Any) -> None:
    """Check model and data of an environment without loading them; tables have none."""
    known = {*gymnasium.registry, *(id.rpartition("-v")[0] for id in gymnasium.registry)}  # Gymnasium completes an id
    if ":" not in given.env_id and given.env_id not in known:  # `module:id` is registered by its module
        check_names([given.env_id], ENVIRONMENTS, "env_id", own=True)
    is_live = env_entry(given.env_id) is not None and not is_tabular(given.env_id)
    if is_live and not given.env_kwargs.keys() & vars(given.problem).keys():
        check_before_loading(given.problem, vars(given))


def check_comparison(given: settings.CompareSettings) -> None:
    """See `check_environment`. Without `live`, the table of the environment is read, which needs no model."""
    if given.live or env_entry(given.env_id) is None:
        check_environment(given)


def check_table(given: settings.TableSettings) -> None:
    """Check model and data without loading them."""
    check_before_loading(given.problem, vars(given))


search = RecordedCommand(
    "agents",
    settings.SearchSettings,
    "das_gym.agents.search_experiment:search_mask",
    named_configs=lambda: {**problem_configs(), **settings.agent_configs()},
    check=check_environment,
    complete_settings=settings.complete_search,
)
pareto = RecordedCommand(
    "agents pareto",
    settings.ParetoSettings,
    "das_gym.agents.pareto_experiment:search_front",
    problem_configs,
    check_environment,
    settings.add_environment,
)
table = RecordedCommand(
    "agents table", settings.TableSettings, "das_gym.agents.table_experiment:make_table", named_problems, check_table
)
compare = RecordedCommand(
    "agents compare",
    settings.CompareSettings,
    "das_gym.agents.compare_experiment:run_comparison",
    problem_configs,
    check_comparison,
    settings.add_environment,
)
