"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent; and its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, answer, ask
from das_gym.agents.sb3.algorithms import choose_action, find_algorithm, is_algorithm, with_defaults
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.record import FORMAT, SearchResult, Turn, best_row
from das_gym.agents.searching.setup import (
    fewer_examples,
    find_scorer,
    has_fewer_examples,
    make_env,
    make_search_agent,
    observed_statistics,
    score_masks,
    takes,
)

from das_gym.config import build
from das_gym.files import explain_damage, read_json, write_json
from das_gym.problem.budget import pick_budget
from das_gym.problem.mask_cost import SAVED
from das_gym.problem.mask_space import MaskSpace
from das_gym.progress import waiting

CHECKPOINT = "checkpoint.json"

OnTurn = Callable[[Turn], Any]


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
        on_turn: Called after every turn with it; when resuming first with the turns of the checkpoint.
        resume: Continue from the checkpoint in `folder`, if there is one. The result is that of an uninterrupted search.

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
        agent, history = run_turns(config, env, run_folder, on_turn, resume)
        masks = answer(agent, config.agent)[None]
        # Scored in addition to the budget, as the next step: a replay finds the same examples, also where they change.
        (scored,) = Turn.of(masks, *score_masks(env, masks)).rows
        best = best_row(history, config.mask_kwargs) or scored
        parts = agent.statistics_read, config.agent_settings(), agent.free_budget
        result = SearchResult.of(config, env.unwrapped, scored, best, history, *parts)
    if folder is not None:
        result.save(folder)
    return result


def run_turns(
    config: SearchConfig, env: gymnasium.vector.VectorEnv, folder: Path | None, on_turn: OnTurn | None, resume: bool
) -> tuple[Agent, list[Turn]]:
    """Run the turns of a search until its budget is spent or the agent is done; return the agent and all turns.

    See `search` for the arguments.
    """
    base: Any = env.unwrapped
    with waiting("measuring layer statistics"):
        observation, _ = env.reset(seed=config.seed)
    agent = _new_agent(config, base, observation[0])
    history: list[Turn] = []
    if resume and folder is not None and (checkpoint := Checkpoint.load(folder, config, len(base.layer_names))) is not None:
        with explain_damage(folder / CHECKPOINT, "start a new search"):
            agent.load_state_dict(checkpoint.agent)
            if hasattr(base, "set_state"):
                base.set_state(checkpoint.env)
        history = list(checkpoint.turns)
    if on_turn is not None:
        for turn in history:
            on_turn(turn)
    # A mask on a share of the examples costs that share; what is left below one whole mask is not spent.
    while (left := math.floor(config.evaluations - sum(turn.cost for turn in history))) > 0:
        masks = ask(agent, config.agent, min(left, config.masks_per_turn))
        if len(masks) == 0:
            break
        share = agent.examples_share  # before `tell`, after which it is that of the next masks
        with fewer_examples(find_scorer(base), share):
            rewards, scores = score_masks(env, masks)
        agent.tell(masks, rewards)
        skip = agent.skip_probabilities()
        probabilities = None if skip is None else skip.tolist()
        history.append(Turn.of(masks, rewards, scores, skip_probabilities=probabilities, examples_share=share))
        if folder is not None and len(history) % config.save_every == 0:
            state = base.get_state() if hasattr(base, "get_state") else None
            Checkpoint(agent.state_dict(), state, tuple(history)).save(folder, config)
        if on_turn is not None:
            on_turn(history[-1])
    return agent, history


def check_search(config: SearchConfig) -> None:
    """Make the environment and the agent of a search, and discard them: their errors come before a run is created.

    This loads model and data; the search finds them in the cache of `load_problem`.
    """
    if is_algorithm(config.agent):
        cls, known = find_algorithm(config.agent)
        choose_action(known, config.action)
        with_defaults(cls, known, config.agent_kwargs, config.masks_per_turn)
    with closing(make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free=False)) as env:
        if not is_algorithm(config.agent):
            _new_agent(config, env.unwrapped, np.zeros(cast(Any, env.single_observation_space.shape)))


def _new_agent(config: SearchConfig, base: Any, observation: np.ndarray) -> Agent:
    """Make the agent of a search in an environment with (n_features,) observations."""
    scorer, settings = find_scorer(base), config.agent_settings()
    budget = pick_budget(len(base.layer_names), config.budget, lambda setting: scorer.cost_of(setting))
    if takes(config.agent, "stages") and not has_fewer_examples(scorer):  # a table of means: one stage, on all examples
        settings = {"stages": [1.0], **settings}
    statistics = observed_statistics(base, observation)
    space, problem = MaskSpace(budget), (config.env_id, config.env_kwargs)
    return make_search_agent(config.agent, space, config.seed, settings, statistics, *problem)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a search after a turn, in `checkpoint.json`: of ask/tell agents and of Stable-Baselines3 alike.

    Attributes:
        agent: `Agent.state_dict()`; empty for an algorithm of Stable-Baselines3, which trains again.
        env: The environment's `get_state()`, which determines the next examples; None if it has none.
        turns: All turns.
    """

    agent: dict[str, Any]
    env: Any
    turns: tuple[Turn, ...]

    def save(self, folder: Path, config: SearchConfig) -> None:
        """Write it into a run folder, with the settings of the search."""
        record = {"format": FORMAT, "config": dataclasses.asdict(config), "agent": self.agent, "env": self.env}
        write_json(folder / CHECKPOINT, {**record, "turns": [vars(turn) for turn in self.turns]}, indent=None)

    @classmethod
    def load(cls, folder: Path, config: SearchConfig, n_layers: int) -> Checkpoint | None:
        """Read the checkpoint of the search `config` in a run folder; None if there is none yet."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return None
        record = read_json(path)
        is_ours = isinstance(record, Mapping) and record.get("format") == FORMAT
        if not is_ours or not isinstance(record.get("config"), Mapping):
            raise ValueError(f"{path} is not a checkpoint of this version. Start a new search")
        # Through JSON, as the recorded settings went: tuples become lists.
        mine = json.loads(json.dumps(dataclasses.asdict(config)))
        for name, value in record["config"].items():
            if name != "save_every" and mine.get(name) != value:
                raise ValueError(
                    f"{path} belongs to a search with another `{name}`: got {mine.get(name)!r}, expected {value!r}. "
                    "Give the same settings, or another folder"
                )
        with explain_damage(path, "start a new search"):
            checkpoint = build(cls, {name: record[name] for name in ("agent", "env", "turns")})
            if any(len(mask) != n_layers for turn in checkpoint.turns for mask in turn.masks):
                raise ValueError(f"its masks do not have {n_layers} layers")
        return checkpoint


def with_costs(config: SearchConfig, folder: Path | None = None) -> SearchConfig:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed: a search that continues from the checkpoint in `folder` has the costs measured then.
    """
    if folder is not None and (folder / CHECKPOINT).is_file():
        costs = read_json(folder / CHECKPOINT)
        for name in ("config", "env_kwargs", "costs"):  # `Checkpoint.load` reports damage
            costs = costs.get(name) if isinstance(costs, Mapping) else None
    elif any(name in SAVED and name != "macs_saved" for name in config.budget):
        with closing(gymnasium.make_vec(config.env_id, num_envs=1, **config.mask_kwargs)) as env:
            costs = cast(Any, env.unwrapped).budget.known_costs["costs"]
    else:
        costs = None
    if not isinstance(costs, Mapping):
        return config
    return dataclasses.replace(config, env_kwargs={**config.env_kwargs, "costs": costs})
