"""Open what scores the masks of a search: a model, or a table."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import gymnasium

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commands.commandline import format_command
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.episodes import ScoredEnv
from das_gym.envs.scoring import Scorer
from das_gym.envs.skip_env import SkipEnv
from das_gym.names import check_arguments
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem
from das_gym.registration import DEFAULT_ENV

SCORES = ("loss", "metric", "macs", "macs_saved")
"""Scores of each mask that records keep."""

ENV_ID_HINT = f"expected an id such as {DEFAULT_ENV}. `{format_command('agents list')}` shows all"


def open_scorer(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seed: int = 0,
    free: bool = False,
    problem: Problem | None = None,
) -> Scorer:
    """Return the scorer of an environment.

    Args:
        env_id: As `gymnasium.make` takes it.
        env_kwargs: Its keyword arguments, the budget among them.
        seed: Seed of the reward examples, where they are drawn.
        free: Whether masks outside the budget are scored too, see `Agent.free_budget`.
        problem: The loaded problem of the environment, which is scored instead of loading it again.

    Raises:
        ValueError: an id that is unknown, or of an environment that is not das_gym's.
    """
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    settings = {**env_kwargs, **budget}
    if problem is not None:
        check_arguments(settings, [*signature(SkipEnv).parameters, *BUDGET_SETTINGS, *ProblemConfig.__dataclass_fields__])
        own = signature(EngineScorer).parameters
        limits = {name: value for name, value in settings.items() if name in BUDGET_SETTINGS}
        scorer: Scorer = EngineScorer(problem, limits, **{k: v for k, v in settings.items() if k in own})
    else:
        scorer = make_scored(env_id, settings).scorer
    scorer.restart(seed)
    return scorer


def make_scored(env_id: str, env_kwargs: Mapping[str, Any]) -> Any:
    """Make a single environment of das_gym, without wrappers; its keyword arguments have the budget among them.

    Raises:
        ValueError: An unknown id, or an environment of another package.
    """
    try:
        env = gymnasium.make(env_id, **env_kwargs).unwrapped
    except gymnasium.error.DependencyNotInstalled:
        raise
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise  # a library is missing; Gymnasium's own error, for the module of an id, names none
        hint = f"`{format_command('agents list')}` shows all."
        raise ValueError(f"`env_id` is not registered: {str(error).rstrip('.?')}. {hint}") from error
    except TypeError as error:
        if str(gymnasium.spec(env_id.rpartition(":")[2]).entry_point).startswith("das_gym."):
            raise
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id} ({error}), {ENV_ID_HINT}") from error
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {ENV_ID_HINT}")
    return env
