"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.asking import answer, ask
from das_gym.agents.ask_tell.base import AGENTS, Agent, agent_class, make_agent
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.searching.environment import (
    fewer_examples,
    find_scorer,
    has_fewer_examples,
    make_env,
    observed_statistics,
)
from das_gym.agents.searching.record import FORMAT, SCORES, SearchResult, Turn, best_row, check_checkpoint, plain_numbers

from das_gym.config import build, choice
from das_gym.files import read_json, write_json
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, Masks, check_budget, pick_budget
from das_gym.problem.mask_cost import SAVED
from das_gym.problem.mask_space import MaskSpace
from das_gym.progress import waiting
from das_gym.registration import DEFAULT_ENV

CHECKPOINT = "checkpoint.json"

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings that a search of a few hundred masks wants unless it is told others.

The paper's rate of 1 is for thousands of turns.
"""


@dataclass(frozen=True)
class SearchConfig(BudgetSettings):
    """What to search, with what, for how long; and within which budget, which agents have to know.

    Attributes:
        env_id: Id of the environment to search, see `python -m agents list`.
        agent: Search algorithm, or "module:class" of your own. `bayes` is ours, `bandit` is the paper's.
        evaluations: Number of masks that the agent may score, at least 1. The final answer and the layer statistics that it
            reads are scored in addition.
        seed: Random seed of the agent and the environment, 0..2^32 - 1.
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`.
        save_every: Turns between checkpoints, at least 1.
    """

    group: ClassVar[str] = "Search"

    env_id: str = DEFAULT_ENV
    agent: str = choice("bayes", ChainMap[str, Any](ALGORITHMS, AGENTS))
    evaluations: int = 240
    seed: int = 0
    masks_per_turn: int = 3
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    save_every: int = 1

    def __post_init__(self) -> None:
        self._check_budget()
        at_least = {"seed": 0, "masks_per_turn": 1, "evaluations": 1, "save_every": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; give a whole number from {least} on")
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed} is not allowed; use 0..{2**32 - 1}")
        settings = {**{name: name for name in BUDGET_SETTINGS}, "num_envs": "masks_per_turn"}
        for name in settings.keys() & self.env_kwargs.keys():
            raise ValueError(f"env_kwargs must not hold {name}; use the setting {settings[name]} of the search")
        for name in ("env_kwargs", "agent_kwargs"):
            try:
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise TypeError(f"{name} is not JSON ({error}); use texts, numbers, lists and mappings") from error
        self._check_agent()

    def _check_agent(self) -> None:
        least = agent_class(self.agent).min_masks
        if self.masks_per_turn < least:
            raise ValueError(
                f"masks_per_turn={self.masks_per_turn} teaches agent {self.agent!r} nothing; use {least} or more"
            )

    def _check_budget(self) -> None:
        check_budget(self.budget)
        if set(self.budget.values()) == {None}:
            raise ValueError(f"skip_num=None: give it, or one of {', '.join(SAVED)}; agents need to know how much to skip")

    @property
    def mask_kwargs(self) -> dict[str, Any]:
        """What makes the environment whose action is a whole mask: the one that a record names."""
        return {**self.budget, **self.env_kwargs}

    def agent_settings(self) -> dict[str, Any]:
        """The agent's hyperparameters, defaults of a search filled in."""
        return {**SEARCH_DEFAULTS.get(self.agent, {}), **self.agent_kwargs}


Config = TypeVar("Config", bound=SearchConfig)
OnTurn = Callable[[Turn, tuple[str, ...]], Any]


def search(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    resume: bool = False,
) -> SearchResult:
    """Spend the budget of `config` and score the agent's answer.

    Args:
        config: What to search.
        folder: Where `checkpoint.json` is kept while searching and `search.json` is written at the very end;
            None keeps nothing.
        on_turn: Called after every turn with it and the layer names, and first with those that a checkpoint holds.
        resume: Go on from the checkpoint in `folder`, if there is one. The result is the same, byte for byte,
            as that of an undisturbed search.

    Returns:
        The result, also in `folder`.

    Raises:
        ValueError: a setting that the environment or the agent refuses, masks that the agent should not have asked for
            (the message names it), or a checkpoint of another search.
    """
    config = with_costs(config, None if folder is None or not resume else Path(folder) / CHECKPOINT)
    free = agent_class(config.agent).free_budget
    env = make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free)
    try:
        loop = _Loop(config, env)
        checkpoint = None if folder is None else Path(folder) / CHECKPOINT
        if resume and checkpoint is not None and checkpoint.is_file():
            loop.restore(read_json(checkpoint), checkpoint)
        if on_turn is not None:
            for turn in loop.history:
                on_turn(turn, loop.layer_names)
        while loop.take_turn():
            if checkpoint is not None and len(loop.history) % config.save_every == 0:
                write_json(checkpoint, loop.state(), indent=None)
            if on_turn is not None:
                on_turn(loop.history[-1], loop.layer_names)
        result = loop.result()
    finally:
        env.close()
    if folder is not None:
        result.save(folder)
    return result


def with_costs(config: Config, checkpoint: Path | None = None) -> Config:
    """The search with what masks cost among its `env_kwargs`, where its budget is of another cost than MACs.

    Latency is measured for that where no figures are given or kept: once, so that the same masks keep the budget until the
    end, and wherever the record is replayed.

    Args:
        config: The search.
        checkpoint: The file that it goes on from, whose figures it keeps; None or no file = it begins anew.
    """
    costs: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.is_file():
        known = read_json(checkpoint)  # whatever is wrong with it is told where the search goes on
        for name in ("config", "env_kwargs", "costs"):
            known = known.get(name) if isinstance(known, Mapping) else None
        costs = {"costs": known} if isinstance(known, Mapping) else {}
    elif any(name in SAVED and name != "macs_saved" for name in config.budget):
        env = gymnasium.make_vec(config.env_id, num_envs=1, **config.mask_kwargs)
        costs = cast(Any, env.unwrapped).budget.known_costs
        env.close()
    return dataclasses.replace(config, env_kwargs={**config.env_kwargs, **costs}) if costs else config


def check_search(config: SearchConfig) -> None:
    """Make the environment and the agent of a search and throw them away: what they refuse is told before anything is kept.

    Model and data are loaded by it; the search finds them in `load_problem`'s cache.

    Raises:
        ValueError: what `search` would before its first turn; FileNotFoundError and Gymnasium's errors likewise.
    """
    env = make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free=False)
    try:
        _new_agent(config, env.unwrapped, np.zeros(cast(Any, env.single_observation_space.shape)))
    finally:
        env.close()


def _new_agent(config: SearchConfig, base: Any, observation: np.ndarray) -> Agent:
    """The agent of a search in an environment that observes (n_features,) numbers."""
    budget = pick_budget(len(base.layer_names), config.budget, lambda setting: find_scorer(base).cost_of(setting))
    statistics = observed_statistics(base, observation)
    generator = agent_generator(config.seed)
    settings = config.agent_settings()
    if takes_stages(config.agent) and not has_fewer_examples(find_scorer(base)):
        settings = {"stages": [1.0], **settings}
    return make_agent(config.agent, MaskSpace(budget), generator, settings, statistics)


def takes_stages(agent: str) -> bool:
    """Whether an agent may ask for rewards on a share of the examples."""
    return "stages" in inspect.signature(agent_class(agent)).parameters


class _Loop:
    """One search under way."""

    def __init__(self, config: SearchConfig, env: gymnasium.vector.VectorEnv) -> None:
        self.config = config
        self.env = env
        self.base = cast(Any, env.unwrapped)
        self.layer_names: tuple[str, ...] = tuple(self.base.layer_names)
        self.history: list[Turn] = []
        with waiting("measuring layer statistics"):
            observation, _ = env.reset(seed=config.seed)
        self.scorer = find_scorer(self.base)
        self.agent = _new_agent(config, self.base, observation[0])

    @property
    def evaluations(self) -> float:
        return sum(turn.cost for turn in self.history)

    def take_turn(self) -> bool:
        """Ask, score, tell; False, with nothing done, when the budget is spent or the agent is done."""
        left = math.floor(self.config.evaluations - self.evaluations)
        if left == 0:
            return False
        masks = ask(self.agent, self.config.agent, min(left, self.config.masks_per_turn))
        if len(masks) == 0:
            return False
        share = self.agent.examples_share
        with fewer_examples(self.scorer, share):
            rewards, scores = self.score(masks)
        self.agent.tell(masks, rewards)
        turn = Turn(
            masks=masks.astype(int).tolist(),
            rewards=plain_numbers(rewards),
            skip_probabilities=_values(self.agent.skip_probabilities()),
            preferences=_values(self.agent.preferences),
            examples_share=share,
            **scores,
        )
        self.history.append(turn)
        return True

    def score(self, masks: Masks) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """Rewards (m,) and scores of (m, n_layers) masks; environments without a mask of their own get the first one."""
        m = len(masks)
        actions = np.repeat(masks[:1], self.env.num_envs, axis=0)
        actions[:m] = masks
        _, rewards, _, _, info = self.env.step(actions.astype(np.int8))
        return rewards[:m], {name: plain_numbers(info[name][:m]) for name in SCORES}

    def result(self) -> SearchResult:
        config, mask = self.config, answer(self.agent, self.config.agent)
        rewards, scores = self.score(mask[None])
        scored = {"reward": plain_numbers(rewards)[0], **{name: values[0] for name, values in scores.items()}}
        best = best_row(self.history, config.mask_kwargs) or {"mask": mask.astype(int).tolist(), **scored}
        return SearchResult.of(
            config,
            self.base,
            {"mask": mask.astype(int).tolist(), **scored},
            best,
            self.history,
            self.agent.statistics_read,
            env_kwargs=config.mask_kwargs,
            agent_kwargs=config.agent_settings(),
            preferences=_values(self.agent.preferences),
            skip_probabilities=_values(self.agent.skip_probabilities()),
            free_budget=self.agent.free_budget,
        )

    def state(self) -> dict[str, Any]:
        """All that the rest of the search depends on."""
        return {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "agent": self.agent.state_dict(),
            "env": self.base.get_state() if hasattr(self.base, "get_state") else None,
            "turns": [vars(turn) for turn in self.history],
        }

    def restore(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from `state()`, read back from the file `path`."""
        check_checkpoint(path, state, self.config)
        try:
            self.agent.load_state_dict(state["agent"])
            if hasattr(self.base, "set_state"):
                self.base.set_state(state["env"])
            self.history = [build(Turn, turn) for turn in state["turns"]]
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); begin a new search") from error
        if any(len(turn.masks[0]) != len(self.layer_names) for turn in self.history if turn.masks):
            raise ValueError(f"{path} is damaged: its masks are not of {len(self.layer_names)} layers; begin a new search")


def agent_generator(seed: int) -> np.random.Generator:
    """What the agent of a search draws from: a child of the seed, since the environment draws from the seed itself."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])


def _values(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()
