"""What a search asks of an environment besides stepping it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commandline import format_command
from das_gym.problem.budget import BUDGET_SETTINGS, Floats
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS, SUITE_IDS, many_objectives, named_environments


def make_env(env_id: str, env_kwargs: Mapping[str, Any], num_envs: int, free: bool) -> gymnasium.vector.VectorEnv:
    """The environment of a search.

    Args:
        env_id: Its id.
        env_kwargs: Its keyword arguments, the budget among them.
        num_envs: Masks a turn.
        free: Whether it takes masks off the budget, see `Agent.free_budget`.
    """
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    name = env_id.rpartition(":")[2]
    if name in SUITE_IDS or name in {many_objectives(id) for e in ENVIRONMENTS.values() for id in (e.id, e.tabular_id)}:
        raise ValueError(
            f"`env_id` has not one problem with one reward: got {env_id}, expected an id such as {DEFAULT_ENV}. "
            f"`{format_command('agents list')}` shows all."
        )
    with refusing_other_environments(env_id):
        return gymnasium.make_vec(env_id, num_envs=num_envs, **{**env_kwargs, **budget})


@contextmanager
def refusing_other_environments(env_id: str) -> Iterator[None]:
    """Raise a ValueError that helps for an id that is not das_gym's, or for the name of a named config."""
    try:
        yield
    except gymnasium.error.UnregisteredEnv as error:
        named = named_environments().get(env_id)
        hint = f"Give env_id={named.id}, or {env_id} alone." if named else f"`{format_command('agents list')}` shows all."
        raise ValueError(f"`env_id` is not registered: {str(error).rstrip('.')}. {hint}") from error
    except TypeError as error:
        if str(gymnasium.spec(env_id).entry_point).startswith("das_gym."):
            raise
        raise ValueError(
            f"`env_id` is not an environment of das_gym: got {env_id}, expected an id such as {DEFAULT_ENV}. "
            f"`{format_command('agents list')}` shows all."
        ) from error


def find_scorer(base: Any) -> Any:
    """What scores masks in an environment of das_gym, single or vector; None in another one."""
    return getattr(getattr(base, "template", base), "scorer", None)


@contextmanager
def fewer_examples(scorer: Any, share: float) -> Iterator[None]:
    """While it lasts, masks are scored on a share of the reward examples, at least on one.

    Raises:
        ValueError: the environment has no fewer examples to give.
    """
    if share == 1.0:
        yield
        return
    if not has_fewer_examples(scorer):
        raise ValueError("this environment scores masks on all its examples at once: leave the agent's stages out")
    whole = scorer.batch_size
    scorer.batch_size = max(1, round(share * whole))
    try:
        yield
    finally:
        scorer.batch_size = whole


def has_fewer_examples(scorer: Any) -> bool:
    """Whether masks can be scored on some of the reward examples: a table of means cannot."""
    return hasattr(scorer, "batch_size")


class LayerStatistics(dict[str, Floats]):
    """Name to (n_layers,) values: what is observed, and what is asked for besides.

    Args:
        observed: What is.
        measure: Tells others by name, or raises a ValueError.
    """

    def __init__(self, observed: Mapping[str, Floats], measure: Callable[[str], Floats]) -> None:
        super().__init__(observed)
        self._measure = measure

    def __missing__(self, name: str) -> Floats:
        self[name] = np.asarray(self._measure(name), dtype=np.float64)
        return self[name]


def observed_statistics(base: Any, observation: Floats) -> dict[str, Floats]:
    """Name to (n_layers,) values of every statistic of which the environment observes all layers.

    Those of das_gym tell others, too, when they are asked for.

    Args:
        base: The environment; its `feature_names` are `<layer>/<statistic>`, it may have none.
        observation: (n_features,) what it observes.
    """
    found: dict[str, dict[str, float]] = {}
    for feature, value in zip(getattr(base, "feature_names", ()), observation.tolist(), strict=False):
        layer, _, name = feature.rpartition("/")
        found.setdefault(name, {})[layer] = value
    names = base.layer_names
    observed = {
        name: np.array([values[layer] for layer in names]) for name, values in found.items() if values.keys() >= set(names)
    }
    measure = getattr(find_scorer(base), "statistic", None)
    return observed if measure is None else LayerStatistics(observed, measure)
