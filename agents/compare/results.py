"""Agents against each other: many seeds each, equal budgets, judged by what their answers are really worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.traces import Trace, check_agent, trace_agent

from das_gym.problem.budget import Floats, Masks

TOLERANCE = 0.001
"""A mask within this share of the best mask's reward counts as near: on some tables the second best is."""

QUARTILES = (25, 50, 75)


@dataclass(frozen=True, eq=False)
class AgentResult:
    """How well an agent did.

    Attributes:
        agent: Its name.
        regret: (seeds, evaluations) the best mask's reward minus its answer's; inf while it has no answer.
        rank: (seeds, evaluations) 1 = the best mask, inf while it has no answer; None where the ground truth is not known.
        found: (seeds, evaluations) bool: the answer earns the best reward exactly.
        near: (seeds, evaluations) bool: the regret is within `TOLERANCE` of the best reward.
        evaluations: (seeds,) how many it used, see `Trace`.
        answers: (seeds, n_layers) its final answers.
        rewards: (seeds,) of those.
        test_metrics: (seeds,) of those, on the test split; NaN where it never had an answer.
        milliseconds: (seeds,) of processor time a turn; None where nobody knows.
    """

    agent: str
    regret: Floats
    rank: Floats | None
    found: npt.NDArray[np.bool_]
    near: npt.NDArray[np.bool_]
    evaluations: npt.NDArray[np.int64]
    answers: Masks
    rewards: Floats
    test_metrics: Floats
    milliseconds: Floats | None = None

    def needed(self) -> Floats:
        """(seeds,) evaluations from which on the answer is as good as the best mask; inf where it never stays so."""
        missed = ~self.found
        last_miss = missed.shape[1] - np.argmax(missed[:, ::-1], axis=1)
        return np.where(missed[:, -1], np.inf, np.where(missed.any(axis=1), last_miss + 1.0, 1.0))

    def mean_regret(self) -> float:
        """Over seeds and evaluations, each seed's from its first answer on; inf where a seed never had one."""
        has_answer = np.isfinite(self.regret)
        totals = np.where(has_answer, self.regret, 0.0).sum(axis=1)
        means = np.full(len(totals), np.inf)
        np.divide(totals, has_answer.sum(axis=1), out=means, where=has_answer.any(axis=1))
        return float(means.mean())

    def record(self) -> dict[str, Any]:
        """In plain JSON values: quartiles of the curves, and every seed's end; None where there is no answer."""
        curves = {"regret": (self.regret, float)} | ({} if self.rank is None else {"rank": (self.rank, int)})
        return {
            "agent": self.agent,
            **{
                name: {f"q{q}": _plain(quantile(curve, q), kind) for q in QUARTILES}
                for name, (curve, kind) in curves.items()
            },
            "found": self.found.mean(axis=0).tolist(),
            "near": self.near.mean(axis=0).tolist(),
            "needed": _plain(self.needed(), int),
            "evaluations": self.evaluations.tolist(),
            "answers": self.answers.astype(int).tolist(),
            "rewards": _plain(self.rewards),
            "test_metrics": _plain(self.test_metrics),
        }


def _plain(values: npt.NDArray[Any], kind: type[float] = float) -> list[float | None]:
    """Plain numbers, whole ones for `int`; None for what JSON has no number for."""
    return [kind(value) if np.isfinite(value) else None for value in values.tolist()]


def quantile(values: npt.NDArray[Any], percent: float) -> npt.NDArray[Any]:
    """(...) the smallest of (seeds, ...) values that so many per cent of the seeds do not exceed; infinite ones may be."""
    return np.percentile(values, percent, axis=0, method="inverted_cdf")


def agent_results(oracle: Oracle, traces: Sequence[Trace]) -> list[AgentResult]:
    """Regrets, ranks and test scores; where the ground truth is not known, the best answer of all stands for it."""
    best = oracle.best_reward
    if best is None:
        best = max(float(each.rewards.max()) for each in traces)
        best = best if np.isfinite(best) else 0.0  # nobody ever had an answer
    results = []
    for each in traces:
        regret = np.maximum(best - each.rewards, 0.0)
        known = oracle.ranks(each.rewards)
        ranks = None if known is None else np.where(np.isfinite(each.rewards), known, np.inf)
        found, near = regret == 0, regret <= TOLERANCE * abs(best)
        tests = np.where(np.isfinite(each.rewards[:, -1]), oracle.test_metrics(each.answers), np.nan)
        results.append(
            AgentResult(
                each.agent,
                regret,
                ranks,
                found,
                near,
                each.evaluations,
                each.answers,
                each.rewards[:, -1],
                tests,
                each.milliseconds,
            )
        )
    return results


def compare(
    oracle: Oracle,
    agents: Sequence[str],
    seeds: Sequence[int] = range(50),
    evaluations: int = 120,
    masks_per_turn: int = 3,
    agent_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    on_agent: Callable[[str], Any] | None = None,
    trace: Callable[..., Trace] = trace_agent,
) -> list[AgentResult]:
    """Compare agents.

    Args:
        oracle: Answers what masks are worth.
        agents: Their names, those of Stable-Baselines3's algorithms among them; see `trace_agent`.
        seeds: Each searches once a seed, and draws as it would in `das_gym.agents.searching.loop.search` with that seed.
        evaluations: Budget of a search.
        masks_per_turn: Masks between two answers.
        agent_kwargs: Hyperparameters by agent; `das_gym.agents.searching.loop.SEARCH_DEFAULTS` are filled in.
        on_agent: Called with the name of each agent when it is done.
        trace: Makes an agent's searches.

    Returns:
        One result an agent, in the order of `agents`.

    Raises:
        ValueError: no such agent, or a hyperparameter that it refuses, which is found before any agent searches; masks that
            an agent should not have asked for.
    """
    settings = {agent: (agent_kwargs or {}).get(agent, {}) for agent in agents}
    for agent in agents:
        check_agent(oracle, agent, settings[agent], masks_per_turn)
    traces = []
    for agent in agents:
        traces.append(trace(oracle, agent, seeds, evaluations, masks_per_turn, settings[agent]))
        if on_agent is not None:
            on_agent(agent)
    return agent_results(oracle, traces)
