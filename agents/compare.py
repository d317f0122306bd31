"""Agents against each other: many seeds each, equal budgets, judged by what their answers are really worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.arena import Arena
from agents.asking import answer, ask
from agents.base import agent_class, make_agent
from agents.search import SEARCH_DEFAULTS, agent_generator
from agents.space import Floats, Masks

TOLERANCE = 0.001
"""A mask within this share of the best mask's reward counts as found."""

QUARTILES = (25, 50, 75)


@dataclass(frozen=True, eq=False)
class Played:
    """What one agent did over all seeds.

    Attributes:
        agent: Its name.
        answers: (seeds, n_layers) its final answers.
        rewards: (seeds, evaluations) reward, on the reward split, of the answer that it would have given after so many
            evaluations.
        evaluations: (seeds,) how many it used; an agent that is done keeps its answer.
    """

    agent: str
    answers: Masks
    rewards: Floats
    evaluations: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Standing:
    """How well an agent did.

    Attributes:
        agent: Its name.
        regret: (seeds, evaluations) the best mask's reward minus its answer's.
        rank: (seeds, evaluations) 1 = the best mask; None where the truth is not known.
        found: (seeds, evaluations) bool: the regret is within `TOLERANCE` of the best reward.
        evaluations: (seeds,) how many it used.
        answers: (seeds, n_layers) its final answers.
        rewards: (seeds,) of those.
        test_metrics: (seeds,) of those, on the test split.
    """

    agent: str
    regret: Floats
    rank: npt.NDArray[np.int64] | None
    found: npt.NDArray[np.bool_]
    evaluations: npt.NDArray[np.int64]
    answers: Masks
    rewards: Floats
    test_metrics: Floats

    def needed(self) -> Floats:
        """(seeds,) evaluations from which on the answer is as good as the best mask; inf where it never stays so."""
        missed = ~self.found
        last_miss = missed.shape[1] - np.argmax(missed[:, ::-1], axis=1)
        return np.where(missed[:, -1], np.inf, np.where(missed.any(axis=1), last_miss + 1.0, 1.0))

    def record(self) -> dict[str, Any]:
        """In plain JSON values: quartiles of the curves, and every seed's end."""
        curves = {"regret": self.regret} if self.rank is None else {"regret": self.regret, "rank": self.rank}
        return {
            "agent": self.agent,
            **{name: {f"q{q}": quantile(curve, q).tolist() for q in QUARTILES} for name, curve in curves.items()},
            "found": self.found.mean(axis=0).tolist(),
            "needed": [None if np.isinf(n) else int(n) for n in self.needed()],
            "evaluations": self.evaluations.tolist(),
            "answers": self.answers.astype(int).tolist(),
            "rewards": self.rewards.tolist(),
            "test_metrics": self.test_metrics.tolist(),
        }


def quantile(values: npt.NDArray[Any], percent: float) -> npt.NDArray[Any]:
    """(...) the smallest of (seeds, ...) values that so many per cent of the seeds do not exceed; infinite ones may be."""
    return np.percentile(values, percent, axis=0, method="inverted_cdf")


def play(
    arena: Arena, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> Played:
    """Let an agent search once a seed; one that draws nothing at random searches once for all."""
    kwargs = {**SEARCH_DEFAULTS.get(agent, {}), **agent_kwargs}
    different = seeds if agent_class(agent).draws else seeds[:1]
    runs = [_play_once(arena, agent, seed, evaluations, masks_per_turn, kwargs) for seed in different]
    runs = runs if len(runs) == len(seeds) else runs * len(seeds)
    answers, rewards, used = zip(*runs, strict=True)
    return Played(agent, np.array(answers), np.array(rewards), np.array(used))


def _play_once(
    arena: Arena, name: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> tuple[Masks, Floats, int]:
    agent = make_agent(name, arena.space, agent_generator(seed), agent_kwargs, arena.statistics)
    if agent.examples_share != 1.0:
        raise ValueError(f"agent {name!r} is told to begin on fewer examples; comparisons score all: leave stages out")
    curve = np.zeros(evaluations)
    used = 0
    while used < evaluations:
        masks = ask(agent, name, min(masks_per_turn, evaluations - used))
        if len(masks) == 0:
            break
        agent.tell(masks, arena.rewards(masks))
        curve[used:] = arena.rewards(answer(agent, name)[None])[0]
        used += len(masks)
    final = answer(agent, name)
    if used == 0:  # the budget leaves one mask, and the agent knows
        curve[:] = arena.rewards(final[None])[0]
    return final, curve, used


def judge(arena: Arena, played: Sequence[Played]) -> list[Standing]:
    """Regrets, ranks and test scores; where the truth is not known, the best answer of all stands for it."""
    best = arena.best_reward
    if best is None:
        best = max(float(each.rewards.max()) for each in played)
    standings = []
    for each in played:
        regret = np.maximum(best - each.rewards, 0.0)
        ranks = arena.ranks(each.rewards)
        found = regret <= TOLERANCE * abs(best)
        tests = arena.test_metrics(each.answers)
        standings.append(
            Standing(each.agent, regret, ranks, found, each.evaluations, each.answers, each.rewards[:, -1], tests)
        )
    return standings


def compare(
    arena: Arena,
    agents: Sequence[str],
    seeds: Sequence[int] = range(50),
    evaluations: int = 120,
    masks_per_turn: int = 3,
    agent_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    on_agent: Callable[[str], Any] | None = None,
) -> list[Standing]:
    """Compare agents.

    Args:
        arena: Where.
        agents: Their names.
        seeds: Each searches once a seed, and draws as it would in `agents.search.search` with that seed.
        evaluations: Budget of a search.
        masks_per_turn: Masks between two answers.
        agent_kwargs: Hyper-parameters by agent; `SEARCH_DEFAULTS` are filled in.
        on_agent: Called with the name of each agent when it is done.

    Returns:
        One standing an agent, in the order of `agents`.

    Raises:
        ValueError: what `make_agent` refuses.
    """
    played = []
    for agent in agents:
        played.append(play(arena, agent, seeds, evaluations, masks_per_turn, (agent_kwargs or {}).get(agent, {})))
        if on_agent is not None:
            on_agent(agent)
    return judge(arena, played)
