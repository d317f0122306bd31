"""Environments as searches use them: making one, its scorer, and the layer statistics that it observes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commandline import format_command
from das_gym.envs.scored_env import ScoredEnv
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_cost import BUDGET_SETTINGS
from das_gym.registration import CHECKPOINT_TABLES, DEFAULT_ENV, ENVIRONMENTS, SUITE_IDS, many_objectives, named_environments

SCORES = ("loss", "metric", "macs", "macs_saved")
"""Entries of `info` that records keep of each mask."""

OURS = f"expected an id such as {DEFAULT_ENV}. `{format_command('agents list')}` shows all"


def make_env(env_id: str, env_kwargs: Mapping[str, Any], num_envs: int, free: bool) -> gymnasium.vector.VectorEnv:
    """Make the vector environment of a search; `free` lifts its budget, see `Agent.free_budget`."""
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    name = env_id.rpartition(":")[2]
    if name in SUITE_IDS or name.endswith(many_objectives("")):
        raise ValueError(f"`env_id` has not one problem with one reward: got {env_id}, {OURS}")
    with explained_errors(env_id):
        return gymnasium.make_vec(env_id, num_envs=num_envs, **{**env_kwargs, **budget})


def make_scored(env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> Any:
    """Make a single environment of das_gym, without wrappers."""
    with explained_errors(env_id):
        env = gymnasium.make(env_id, **budget, **env_kwargs).unwrapped
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {OURS}")
    return env


def score_masks(env: gymnasium.vector.VectorEnv, masks: Masks) -> tuple[Floats, dict[str, Any]]:
    """Return (m,) rewards, and `SCORES` and `feasible`, of (m, n_layers) masks, m <= num_envs, from one step."""
    m = len(masks)
    actions = np.repeat(masks[:1], env.num_envs, axis=0)  # surplus environments repeat the first mask
    actions[:m] = masks
    _, rewards, _, _, info = env.step(actions.astype(np.int8))
    return rewards[:m], {name: info[name][:m] for name in (*SCORES, "feasible") if name in info}


@contextmanager
def explained_errors(env_id: str) -> Iterator[None]:
    """Turn Gymnasium's errors about an unknown id or a foreign environment into a ValueError with a hint."""
    try:
        yield
    except gymnasium.error.UnregisteredEnv as error:
        named = named_environments().get(env_id)
        hint = f"Give env_id={named.id}, or {env_id} alone." if named else f"`{format_command('agents list')}` shows all."
        raise ValueError(f"`env_id` is not registered: {str(error).rstrip('.')}. {hint}") from error
    except TypeError as error:
        if str(gymnasium.spec(env_id).entry_point).startswith("das_gym."):
            raise
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {OURS}") from error


def is_tabular(env_id: str) -> bool:
    """Return whether an id, or `module:id`, is an environment of das_gym that looks scores up in a table."""
    return env_id.rpartition(":")[2] in {*(entry.tabular_id for entry in ENVIRONMENTS.values()), *CHECKPOINT_TABLES}


def find_scorer(base: Any) -> Any:
    """Return the scorer of a single or vector environment of das_gym; None for other environments."""
    return getattr(getattr(base, "template", base), "scorer", None)


@contextmanager
def fewer_examples(scorer: Any, share: float) -> Iterator[None]:
    """Score masks on a fraction of the reward examples, at least on one, within the block."""
    if share == 1.0:
        yield
        return
    if not has_fewer_examples(scorer):
        raise ValueError("this environment scores masks on all its examples at once: leave the agent's `stages` out")
    everything = scorer.batch_size
    scorer.batch_size = max(1, round(share * everything))
    try:
        yield
    finally:
        scorer.batch_size = everything


def has_fewer_examples(scorer: Any) -> bool:
    """Return whether masks can be scored on some of the reward examples; a table of means cannot."""
    return hasattr(scorer, "batch_size")


def continue_examples(base: Any, state: Mapping[str, Any]) -> None:
    """Set which examples an environment scores next, from the state of any number of environments; keep its episodes."""
    episodes = {name: value for name, value in base.get_state().items() if name in ("episode", "waiting")}
    base.set_state({**state, **episodes})


class LayerStatistics(dict[str, Floats]):
    """Name to (n_layers,) values of the observed statistics; `measure` gives others when they are looked up."""

    def __init__(self, observed: Mapping[str, Floats], measure: Callable[[str], Floats]) -> None:
        super().__init__(observed)
        self._measure = measure

    def __missing__(self, name: str) -> Floats:
        self[name] = np.asarray(self._measure(name), dtype=np.float64)
        return self[name]


def observed_statistics(base: Any, observation: Floats) -> dict[str, Floats]:
    """Return name to (n_layers,) values of each statistic in an (n_features,) observation of all layers.

    The environment's `feature_names`, if any, are `<layer>/<statistic>`.
    """
    found: dict[str, dict[str, float]] = {}
    for feature, value in zip(getattr(base, "feature_names", ()), observation.tolist(), strict=False):
        layer, _, name = feature.rpartition("/")
        found.setdefault(name, {})[layer] = value
    names = base.layer_names
    complete = {name: values for name, values in found.items() if values.keys() >= set(names)}
    observed = {name: np.array([values[layer] for layer in names]) for name, values in complete.items()}
    measure = getattr(find_scorer(base), "statistic", None)
    return observed if measure is None else LayerStatistics(observed, measure)
