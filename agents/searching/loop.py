"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import AGENTS, Agent, agent_class, answer, ask
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.searching.agent_setup import SEARCH_DEFAULTS, make_search_agent, takes
from das_gym.agents.searching.checkpoint import CHECKPOINT, Checkpoint, saved_costs
from das_gym.agents.searching.environment import (
    fewer_examples,
    find_scorer,
    has_fewer_examples,
    make_env,
    observed_statistics,
)
from das_gym.agents.searching.record import SCORES, SearchResult, Turn, best_row, plain_numbers

from das_gym.config import choice
from das_gym.files import explain_damage
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, Masks, check_budget, pick_budget
from das_gym.problem.mask_cost import SAVED
from das_gym.problem.mask_space import MaskSpace
from das_gym.progress import waiting
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS


@dataclass(frozen=True)
class SearchConfig(BudgetSettings):
    """Settings of a search: environment, agent, number of evaluations and budget.

    Attributes:
        env_id: Id of the environment to search; `DAS-METER-VQA-Tabular-v0` and the like read a table.
        agent: Search algorithm, or "module:class" of a custom one. `bayes` is ours, `bandit` is the paper's.
        evaluations: Number of masks that the agent may score, at least 1. The final answer and the layer statistics that it
            reads are scored in addition.
        seed: Random seed of the agent and the environment, 0..2^32 - 1.
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`.
        save_every: Turns between checkpoints, at least 1.

    Example:
        >>> config = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent="random", skip_num=4, evaluations=60)
        >>> sum(search(config).mask)
        4
    """

    group: ClassVar[str] = "Search"

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS)
    agent: str = choice("bayes", ChainMap[str, Any](ALGORITHMS, AGENTS))
    evaluations: int = 240
    seed: int = 0
    masks_per_turn: int = 3
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    save_every: int = 1

    def __post_init__(self) -> None:
        self._check_budget()
        for name, least in {"seed": 0, "masks_per_turn": 1, "evaluations": 1, "save_every": 1}.items():
            value = getattr(self, name)
            if not least <= value < 2**32:
                raise ValueError(f"`{name}` is out of range: got {value}, expected a whole number from {least} to 2^32 - 1")
        reserved = {**{name: name for name in BUDGET_SETTINGS}, "num_envs": "masks_per_turn"}
        for name in reserved.keys() & self.env_kwargs.keys():
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Use the setting `{reserved[name]}` of the search")
        for name in ("env_kwargs", "agent_kwargs"):
            try:
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise TypeError(f"`{name}` is not JSON ({error}). Use texts, numbers, lists and mappings") from error
        self._check_agent()

    def _check_agent(self) -> None:
        least = agent_class(self.agent).min_masks
        if self.masks_per_turn < least:
            given = f"got {self.masks_per_turn}, expected {least} or more"
            raise ValueError(f"`masks_per_turn` is too small for agent {self.agent!r}: {given}")

    def _check_budget(self) -> None:
        check_budget(self.budget)
        if set(self.budget.values()) == {None}:
            raise ValueError(f"`skip_num` is None. Give it, or one of {', '.join(SAVED)}: agents need a budget")

    @property
    def mask_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment whose action is a whole mask: those that a record keeps."""
        return {**self.budget, **self.env_kwargs}

    def agent_settings(self) -> dict[str, Any]:
        """Return the agent's hyperparameters with the defaults of a search."""
        return {**SEARCH_DEFAULTS.get(self.agent, {}), **self.agent_kwargs}


Config = TypeVar("Config", bound=SearchConfig)
OnTurn = Callable[[Turn, tuple[str, ...]], Any]


def search(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    resume: bool = False,
) -> SearchResult:
    """Search a mask: spend the budget of `config`, and score the agent's answer.

    Args:
        config: What to search.
        folder: Run folder for `checkpoint.json` and, at the end, `search.json`. None keeps nothing.
        on_turn: Called after every turn with it and the layer names; when resuming first with the turns of the checkpoint.
        resume: Continue from the checkpoint in `folder`, if there is one. The result is the same, byte for byte, as that of
            an uninterrupted search.

    Returns:
        The result, also in `folder`.

    Raises:
        ValueError: a setting is not valid for the environment or the agent, the agent asks for masks that are not allowed,
            or the checkpoint is of another search.

    Example:
        >>> from das_gym.agents import SearchConfig, search
        >>> config = SearchConfig("DAS-METER-VQA-Tabular-v0", agent="bayes", evaluations=30, skip_num=4)
        >>> search(config).n_skipped
        4
    """
    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder if resume else None)
    free = agent_class(config.agent).free_budget
    env = make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free)
    try:
        loop = SearchLoop(config, env)
        if resume and run_folder is not None:
            loop.restore(run_folder)
        if on_turn is not None:
            for turn in loop.history:
                on_turn(turn, loop.layer_names)
        while loop.take_turn():
            if run_folder is not None and len(loop.history) % config.save_every == 0:
                loop.checkpoint().save(run_folder, config)
            if on_turn is not None:
                on_turn(loop.history[-1], loop.layer_names)
        result = loop.result()
    finally:
        env.close()
    if folder is not None:
        result.save(folder)
    return result


def with_costs(config: Config, folder: Path | None = None) -> Config:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed.

    Args:
        config: The search.
        folder: The run folder whose checkpoint it continues, with the costs measured then; None starts a new search.
    """
    if folder is not None and (folder / CHECKPOINT).is_file():
        known = saved_costs(folder)
        costs = {} if known is None else {"costs": known}
    elif any(name in SAVED and name != "macs_saved" for name in config.budget):
        env = gymnasium.make_vec(config.env_id, num_envs=1, **config.mask_kwargs)
        costs = cast(Any, env.unwrapped).budget.known_costs
        env.close()
    else:
        costs = {}
    return dataclasses.replace(config, env_kwargs={**config.env_kwargs, **costs}) if costs else config


def check_search(config: SearchConfig) -> None:
    """Make the environment and the agent of a search, and discard them: their errors come before a run is created.

    This loads model and data; the search finds them in the cache of `load_problem`.
    """
    env = make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free=False)
    try:
        _new_agent(config, env.unwrapped, np.zeros(cast(Any, env.single_observation_space.shape)))
    finally:
        env.close()


def _new_agent(config: SearchConfig, base: Any, observation: np.ndarray) -> Agent:
    """Make the agent of a search in an environment with (n_features,) observations."""
    scorer, settings = find_scorer(base), config.agent_settings()
    budget = pick_budget(len(base.layer_names), config.budget, lambda setting: scorer.cost_of(setting))
    if takes(config.agent, "stages") and not has_fewer_examples(scorer):
        settings = {"stages": [1.0], **settings}
    statistics = observed_statistics(base, observation)
    space, problem = MaskSpace(budget), (config.env_id, config.env_kwargs)
    return make_search_agent(config.agent, space, config.seed, settings, statistics, *problem)


class SearchLoop:
    """A running search.

    Args:
        config: The search.
        env: Its environment.

    Attributes:
        history: All turns so far.
    """

    def __init__(self, config: SearchConfig, env: gymnasium.vector.VectorEnv) -> None:
        self.config = config
        self.env = env
        self.base = cast(Any, env.unwrapped)
        self.layer_names: tuple[str, ...] = tuple(self.base.layer_names)
        self.history: list[Turn] = []
        with waiting("measuring layer statistics"):
            observation, _ = env.reset(seed=config.seed)
        self.agent = _new_agent(config, self.base, observation[0])

    def take_turn(self) -> bool:
        """Ask for masks, score them and pass on the rewards. Return False if the budget is spent or the agent is done."""
        left = math.floor(self.config.evaluations - sum(turn.cost for turn in self.history))
        if left == 0:
            return False
        masks = ask(self.agent, self.config.agent, min(left, self.config.masks_per_turn))
        if len(masks) == 0:
            return False
        share = self.agent.examples_share
        with fewer_examples(find_scorer(self.base), share):
            rewards, scores = self._score(masks)
        self.agent.tell(masks, rewards)
        turn = Turn(
            masks=masks.astype(int).tolist(),
            rewards=plain_numbers(rewards),
            skip_probabilities=_list(self.agent.skip_probabilities()),
            preferences=_list(self.agent.preferences),
            examples_share=share,
            **scores,
        )
        self.history.append(turn)
        return True

    def _score(self, masks: Masks) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """Return rewards and scores of (m, n_layers) masks. Surplus environments repeat the first mask."""
        m = len(masks)
        actions = np.repeat(masks[:1], self.env.num_envs, axis=0)
        actions[:m] = masks
        _, rewards, _, _, info = self.env.step(actions.astype(np.int8))
        return rewards[:m], {name: plain_numbers(info[name][:m]) for name in SCORES}

    def result(self) -> SearchResult:
        """Score the agent's answer, and return the record of the search."""
        config, agent = self.config, self.agent
        mask = answer(agent, config.agent)
        rewards, scores = self._score(mask[None])
        scored = {"mask": mask.astype(int).tolist(), "reward": plain_numbers(rewards)[0]}
        scored |= {name: values[0] for name, values in scores.items()}
        return SearchResult.of(
            config,
            self.base,
            scored,
            best_row(self.history, config.mask_kwargs) or scored,
            self.history,
            agent.statistics_read,
            env_kwargs=config.mask_kwargs,
            agent_kwargs=config.agent_settings(),
            preferences=_list(agent.preferences),
            skip_probabilities=_list(agent.skip_probabilities()),
            free_budget=agent.free_budget,
        )

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint from which the search can be resumed."""
        env = self.base.get_state() if hasattr(self.base, "get_state") else None
        return Checkpoint(self.agent.state_dict(), env, tuple(self.history))

    def restore(self, folder: Path) -> None:
        """Continue from the checkpoint in a run folder, if there is one."""
        checkpoint = Checkpoint.load(folder, self.config, len(self.layer_names))
        if checkpoint is None:
            return
        with explain_damage(folder / CHECKPOINT, "start a new search"):
            self.agent.load_state_dict(checkpoint.agent)
            if hasattr(self.base, "set_state"):
                self.base.set_state(checkpoint.env)
        self.history = list(checkpoint.turns)


def _list(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()
