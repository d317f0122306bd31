"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

from __future__ import annotations

import math
import os
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, answer, ask
from das_gym.agents.sb3.algorithms import choose_action, find_algorithm, is_algorithm, with_defaults
from das_gym.agents.searching.config import SearchConfig, with_costs
from das_gym.agents.searching.record import CHECKPOINT, Checkpoint, OnTurn, SearchResult, Turn, best_row
from das_gym.agents.searching.setup import (
    fewer_examples,
    find_scorer,
    make_env,
    make_search_agent,
    observed_statistics,
    score_masks,
    takes,
)

from das_gym.commands.progress import progress
from das_gym.files import explain_damage
from das_gym.problem.budget import pick_budget
from das_gym.problem.mask_space import MaskSpace


def search(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    resume: bool = False,
) -> SearchResult:
    """Search for a mask: spend the budget of `config`, and score the agent's answer.

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
        # Not part of the budget. It is the next step of the environment, so that a replay scores it on the same examples.
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
    """Run the turns of a `search` until its budget is spent or the agent is done; return the agent and all turns."""
    base: Any = env.unwrapped
    with progress(1, "measuring layer statistics", unit="step") as bar:
        observation, _ = env.reset(seed=config.seed)
        bar.update()
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
    # A mask scored on a share of the examples costs that share. Less than one full evaluation is not spent.
    while (left := math.floor(config.evaluations - sum(turn.cost for turn in history))) > 0:
        masks = ask(agent, config.agent, min(left, config.masks_per_turn))
        if len(masks) == 0:
            break
        share = agent.examples_share  # read before `tell`, which sets it for the next masks
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
    if takes(config.agent, "stages") and not hasattr(scorer, "batch_size"):  # a table of means: one stage
        settings = {"stages": [1.0], **settings}
    statistics = observed_statistics(base, observation)
    space, problem = MaskSpace(budget), (config.env_id, config.env_kwargs)
    return make_search_agent(config.agent, space, config.seed, settings, statistics, *problem)
