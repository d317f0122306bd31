"""One agent asking an oracle: a search for every seed, and what its answer was worth after each evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from das_gym.agents.ask_tell.asking import answer, ask
from das_gym.agents.ask_tell.base import Agent, agent_class, make_agent
from das_gym.agents.block_measuring import blocks_of, takes_blocks
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.sb3.config import check_agent_name
from das_gym.agents.searching.loop import SEARCH_DEFAULTS, agent_generator

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.statistics import masks_needed

ON_ALL_EXAMPLES: dict[str, dict[str, Any]] = {"evopress": {"stages": [1.0], "offspring": 8, "initial": 8}}
"""Settings of agents that begin on few examples, where every mask is scored on all: comparisons count whole evaluations."""

NO_ANSWER = -np.inf
"""The reward of the answer of an agent that has none yet."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What one agent did over all seeds.

    Attributes:
        agent: Its name.
        answers: (seeds, n_layers) its final answers.
        rewards: (seeds, evaluations) reward, on the reward split, of the answer that it would have given after so many
            evaluations; -inf before its first turn is scored.
        evaluations: (seeds,) how many it used, with those that a model takes for the statistics it reads; an agent that is
            done keeps its answer.
        milliseconds: (seeds,) of processor time a turn, for its asking and being told; None where nobody knows.
    """

    agent: str
    answers: Masks
    rewards: Floats
    evaluations: npt.NDArray[np.int64]
    milliseconds: Floats | None = None


Search = tuple[Masks, Floats, int, float]
"""One search, a row of each array of a `Trace`."""


def trace_agent(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> Trace:
    """Let an agent search once a seed; one that draws nothing at random searches once for all.

    Args:
        oracle: Answers what masks are worth.
        agent: A key of `AGENTS` or of `ALGORITHMS`, or "module:class" of either kind.
        seeds: Of the searches.
        evaluations: Budget of a search.
        masks_per_turn: Masks between two answers.
        agent_kwargs: Hyperparameters; `SEARCH_DEFAULTS` are filled in.

    Raises:
        ValueError: no such agent, a hyperparameter that it refuses, or masks that it should not have asked for.
    """
    play_once = _train_once if is_algorithm(agent) else _search_once
    different = seeds if is_algorithm(agent) or agent_class(agent).draws else seeds[:1]
    runs = [play_once(oracle, agent, seed, evaluations, masks_per_turn, agent_kwargs) for seed in different]
    runs = runs if len(runs) == len(seeds) else runs * len(seeds)
    return Trace(agent, *map(np.array, zip(*runs, strict=True)))


def check_agent(oracle: Oracle, agent: str, agent_kwargs: Mapping[str, Any], masks_per_turn: int) -> None:
    """Make an agent and throw it away, so that a wrong name or hyperparameter is found before any searches.

    An algorithm of Stable-Baselines3 is made by a search of one mask.

    Raises:
        ValueError: what `trace_agent` would.
    """
    if is_algorithm(agent):
        _train_once(oracle, agent, 0, 1, masks_per_turn, agent_kwargs)
        return
    check_agent_name(agent)
    _make(oracle, agent, 0, agent_kwargs)


def _make(oracle: Oracle, name: str, seed: int, agent_kwargs: Mapping[str, Any]) -> Agent:
    settings = {**SEARCH_DEFAULTS.get(name, {}), **ON_ALL_EXAMPLES.get(name, {}), **agent_kwargs}
    if takes_blocks(name) and "blocks" not in settings:
        settings["blocks"] = blocks_of(oracle.env_id, oracle.env_kwargs)
    agent = make_agent(name, oracle.space, agent_generator(seed), settings, oracle.statistics)
    if agent.examples_share != 1.0:
        raise ValueError(f"agent {name!r} is told to begin on fewer examples; comparisons score all: leave stages out")
    return agent


def _search_once(
    oracle: Oracle, name: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> Search:
    agent = _make(oracle, name, seed, agent_kwargs)
    curve = np.full(evaluations, NO_ANSWER)
    used, turns, seconds = 0, 0, 0.0
    while used < evaluations:
        started = time.process_time()
        masks = ask(agent, name, min(masks_per_turn, evaluations - used))
        seconds += time.process_time() - started
        if len(masks) == 0:
            break
        rewards, started = oracle.rewards(masks), time.process_time()
        agent.tell(masks, rewards)
        seconds += time.process_time() - started
        used, turns = used + len(masks), turns + 1
        curve[used - 1 :] = oracle.rewards(answer(agent, name)[None])[0]
    final = answer(agent, name)
    if used == 0:  # the budget leaves one mask, and the agent knows
        curve[:] = oracle.rewards(final[None])[0]
    used += masks_needed(agent.statistics_read, agent.n_layers)
    return final, curve, used, 1e3 * seconds / max(turns, 1)


def _train_once(
    oracle: Oracle, name: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> Search:
    """As `_search_once`, with an algorithm of Stable-Baselines3 on `masks_per_turn` environments side by side.

    On the way its answer is the best mask scored so far, at the end that or the policy's own, whichever is better. Its
    time is that of the whole training, by turns.
    """
    from das_gym.agents.sb3.train import train_sb3

    space, started = oracle.space, time.process_time()
    result = train_sb3(
        name,
        hyperparameters=agent_kwargs,
        n_envs=masks_per_turn,
        env_id=oracle.env_id,
        env_kwargs=dict(oracle.env_kwargs),
        **space.budget.settings,
        seed=seed,
        evaluations=evaluations,
    ).result
    curve = np.full(evaluations, NO_ANSWER)
    used = 0
    for turn in result.history:
        reward = oracle.rewards(np.array(turn.masks, dtype=bool)).max()
        used += len(turn.masks)
        curve[used - 1 :] = max(reward, curve[used - 1])
    final = np.array(result.mask, dtype=bool)
    if space.contains(final[None])[0]:  # a policy that never kept the budget has no answer
        curve[max(used, 1) - 1 :] = oracle.rewards(final[None])[0]
    used += masks_needed(oracle.statistics, space.n_layers)  # its policy reads all that is observed
    return final, curve, used, 1e3 * (time.process_time() - started) / max(len(result.history), 1)
