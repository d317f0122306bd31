"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import ChainMap
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import AGENTS, Agent, agent_class, answer, ask, check_agent_kwargs
from das_gym.agents.sb3.algorithms import ALGORITHMS, check_agent_name, check_algorithm, is_algorithm
from das_gym.agents.searching.agent_setup import SEARCH_DEFAULTS, make_search_agent, takes
from das_gym.agents.searching.checkpoint import CHECKPOINT, Checkpoint, saved_costs
from das_gym.agents.searching.environment import (
    fewer_examples,
    find_scorer,
    has_fewer_examples,
    make_env,
    observed_statistics,
    score_masks,
)
from das_gym.agents.searching.record import SearchResult, Turn, best_row

from das_gym.config import choice
from das_gym.envs.actions import ACTION_MODES
from das_gym.files import explain_damage
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings, check_budget, pick_budget
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
        masks_per_turn: Masks that are scored together on the same examples, at least 1. The paper uses 3. For an algorithm
            of Stable-Baselines3, its number of parallel environments.
        agent_kwargs: Hyperparameters of the agent, as in `agent_kwargs.learning_rate=10`. `python -m agents list` shows
            them.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`.
        save_every: Turns between checkpoints, at least 1.
        action: Action space of an algorithm of Stable-Baselines3. None means the first that the algorithm supports.
        start_from: Trained agent of Stable-Baselines3 to continue training: an agent.zip, or the folder of its run.

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
    action: str | None = choice(None, ACTION_MODES)
    start_from: str | None = None

    def __post_init__(self) -> None:
        check_agent_name(self.agent)
        for name, least in {"seed": 0, "masks_per_turn": 1, "evaluations": 1, "save_every": 1}.items():
            value = getattr(self, name)
            if not least <= value < 2**32:
                raise ValueError(f"`{name}` is out of range: got {value}, expected a whole number from {least} to 2^32 - 1")
        reserved = {**{name: name for name in BUDGET_SETTINGS}, "num_envs": "masks_per_turn", "action": "action"}
        for name in reserved.keys() & self.env_kwargs.keys():
            raise ValueError(f"`env_kwargs` must not hold `{name}`. Use the setting `{reserved[name]}` of the search")
        for name in ("env_kwargs", "agent_kwargs"):
            try:
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise TypeError(f"`{name}` is not JSON ({error}). Use texts, numbers, lists and mappings") from error
        has_budget = set(self.budget.values()) != {None}
        if has_budget or not is_algorithm(self.agent):
            check_budget(self.budget)
        if not is_algorithm(self.agent):
            self._check_agent(has_budget)

    def _check_agent(self, has_budget: bool) -> None:
        """Check the settings of an ask/tell agent. Those of an algorithm are checked by `check_search`."""
        if not has_budget:
            raise ValueError(f"`skip_num` is None. Give it, or one of {', '.join(SAVED)}: agents need a budget")
        for name in ("action", "start_from"):
            if getattr(self, name) is not None:
                raise ValueError(f"agent {self.agent!r} has no setting {name}; it is for {', '.join(ALGORITHMS)}")
        check_agent_kwargs(self.agent, self.agent_kwargs)
        least = agent_class(self.agent).min_masks
        if self.masks_per_turn < least:
            given = f"got {self.masks_per_turn}, expected {least} or more"
            raise ValueError(f"`masks_per_turn` is too small for agent {self.agent!r}: {given}")

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
            an uninterrupted search; not for an algorithm of Stable-Baselines3, see `das_gym.agents.sb3.train`.

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
    if is_algorithm(config.agent):
        from das_gym.agents.sb3.train import train_sb3

        return train_sb3(config, folder, on_turn, resume).result
    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder if resume else None)
    free = agent_class(config.agent).free_budget
    with closing(make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free)) as env:
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
    if folder is not None:
        result.save(folder)
    return result


def with_costs(config: Config, folder: Path | None = None) -> Config:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed: a search that continues from the checkpoint in `folder` has the costs measured then.
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
    if is_algorithm(config.agent):
        check_algorithm(config.agent, config.agent_kwargs, config.masks_per_turn, config.action, config.start_from)
    with closing(make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free=False)) as env:
        if not is_algorithm(config.agent):
            _new_agent(config, env.unwrapped, np.zeros(cast(Any, env.single_observation_space.shape)))


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
    """A running search; `history` holds all turns so far."""

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
            rewards, scores = score_masks(self.env, masks)
        self.agent.tell(masks, rewards)
        self.history.append(Turn.of(masks, rewards, scores, **self._agent_lists(), examples_share=share))
        return True

    def result(self) -> SearchResult:
        """Score the agent's answer, and return the record of the search."""
        config, agent = self.config, self.agent
        masks = answer(agent, config.agent)[None]
        (scored,) = Turn.of(masks, *score_masks(self.env, masks)).rows
        best = best_row(self.history, config.mask_kwargs) or scored
        return SearchResult.of(
            config,
            self.base,
            scored,
            best,
            self.history,
            agent.statistics_read,
            config.agent_settings(),
            free_budget=agent.free_budget,
            **self._agent_lists(),
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

    def _agent_lists(self) -> dict[str, list[float] | None]:
        found = {"skip_probabilities": self.agent.skip_probabilities(), "preferences": self.agent.preferences}
        return {name: None if values is None else values.tolist() for name, values in found.items()}
