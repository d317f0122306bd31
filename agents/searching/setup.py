"""Environments and agents as searches and comparisons make them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, make_agent
from das_gym.agents.ask_tell.heuristics import Blocks

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commands.commandline import format_command
from das_gym.envs.episodes import ScoredEnv
from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.files import explain_damage, read_json
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_cost import BUDGET_SETTINGS
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import CHECKPOINT_TABLES, DEFAULT_ENV, ENVIRONMENTS, SUITE_IDS, many_objectives, named_environments

SCORES = ("loss", "metric", "macs", "macs_saved")
"""Entries of `info` that records keep of each mask."""

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings for searches of a few hundred masks; the paper's rate of 1 is for thousands of turns."""

OURS = f"expected an id such as {DEFAULT_ENV}. `{format_command('agents list')}` shows all"


def make_env(env_id: str, env_kwargs: Mapping[str, Any], num_envs: int, free: bool) -> gymnasium.vector.VectorEnv:
    """Make the vector environment of a search; `free` lifts its budget, see `Agent.free_budget`."""
    _check_id(env_id)
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    with explained_errors(env_id):
        return gymnasium.make_vec(env_id, num_envs=num_envs, **{**env_kwargs, **budget})


def make_scored(env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> Any:
    """Make a single environment of das_gym, without wrappers."""
    _check_id(env_id)
    with explained_errors(env_id):
        env = gymnasium.make(env_id, **budget, **env_kwargs).unwrapped
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {OURS}")
    return env


def _check_id(env_id: str) -> None:
    name = f"{env_id.rpartition(':')[2].removesuffix('-v0')}-v0"  # Gymnasium finds ids without a version, too
    if name in SUITE_IDS or name.endswith(many_objectives("")):
        raise ValueError(f"`env_id` is a suite or has several rewards, which searches do not support: got {env_id}, {OURS}")


@contextmanager
def explained_errors(env_id: str) -> Iterator[None]:
    """Raise a ValueError with a hint for an unknown environment, or one of another package, which rejects our arguments."""
    try:
        yield
    except gymnasium.error.UnregisteredEnv as error:
        named = named_environments().get(env_id)
        hint = f"Give env_id={named.id}, or {env_id} alone." if named else f"`{format_command('agents list')}` shows all."
        raise ValueError(f"`env_id` is not registered: {str(error).rstrip('.')}. {hint}") from error
    except TypeError as error:
        if str(gymnasium.spec(env_id.rpartition(":")[2]).entry_point).startswith("das_gym."):
            raise
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id} ({error}), {OURS}") from error


def score_masks(env: gymnasium.vector.VectorEnv, masks: Masks) -> tuple[Floats, dict[str, Any]]:
    """Return (m,) rewards, and `SCORES` and `feasible`, of (m, n_layers) masks, m <= num_envs, from one step."""
    m = len(masks)
    actions = np.repeat(masks[:1], env.num_envs, axis=0)  # surplus environments repeat the first mask
    actions[:m] = masks
    _, rewards, _, _, info = env.step(actions.astype(np.int8))
    return rewards[:m], {name: info[name][:m] for name in (*SCORES, "feasible") if name in info}


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
    if not hasattr(scorer, "batch_size"):
        raise ValueError("this environment scores masks on all its examples at once: leave the agent's `stages` out")
    everything = scorer.batch_size
    scorer.batch_size = max(1, round(share * everything))
    try:
        yield
    finally:
        scorer.batch_size = everything


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


def make_search_agent(
    name: str,
    space: MaskSpace,
    seed: int,
    agent_kwargs: Mapping[str, Any],
    statistics: Mapping[str, Floats],
    env_id: str,
    env_kwargs: Mapping[str, Any],
) -> Agent:
    """Make the agent of a search; `SEARCH_DEFAULTS` and, for agents that take them, `blocks` are filled in."""
    settings = {**SEARCH_DEFAULTS.get(name, {}), **agent_kwargs}
    if takes(name, "blocks") and "blocks" not in settings:
        settings["blocks"] = blocks_of(env_id, json.dumps(dict(env_kwargs), sort_keys=True))
    # The agent draws from a child of the seed, since the environment draws from the seed itself.
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    return make_agent(name, space, rng, settings, statistics)


def takes(agent: str, parameter: str) -> bool:
    """Return whether an ask/tell agent has a hyperparameter."""
    return parameter in inspect.signature(agent_class(agent)).parameters


@lru_cache(maxsize=32)  # measuring takes forwards of the full model
def blocks_of(env_id: str, env_kwargs: str) -> dict[str, Any] | None:
    """Return the blocks of layers that `angular` and `interlace` choose by; `env_kwargs` is JSON text, a key of the cache.

    They are measured on the environment's model, or read from the file next to its table. None if they are unknown: a custom
    environment, or a table without such a file.
    """
    from das_gym.problem.blocks import measure_blocks

    settings, name = json.loads(env_kwargs), env_id.rpartition(":")[2]
    if is_tabular(env_id):
        return stored_blocks(table_path(env_id, settings))
    if name not in ENVIRONMENTS:
        return None
    scorer = make_scored(env_id, {"skip_num": None}, settings).scorer
    return measure_blocks(scorer.problem.evaluator, scorer.fixed_examples)


def table_path(env_id: str, env_kwargs: Mapping[str, Any]) -> Path:
    """Return the path of the table that an environment looks scores up in."""
    made_with = gymnasium.spec(env_id.rpartition(":")[2]).kwargs | dict(env_kwargs)
    return Path(made_with.get("table") or bundled_table(made_with["model"], made_with["task"]))


def blocks_file(table: Path) -> Path:
    """Return the path of the blocks of a table: `vqa_blocks.json` next to `vqa_table.npz`."""
    return table.with_name(f"{table.stem.removesuffix('_table')}_blocks.json")


def stored_blocks(table: Path) -> dict[str, Any] | None:
    """Return the blocks stored next to a table; None without a file for the same model and data."""
    path = blocks_file(table)
    if not path.is_file():
        return None
    record, meta = read_json(path), load_table(table).meta
    with explain_damage(path, "remove it: agents then estimate what it holds"):
        if record["hashes"] != meta.hashes:
            return None
        Blocks.from_record(record["blocks"], len(meta.layer_names))
    return dict(record["blocks"])
