"""The results of a comparison: what the answers of an agent are worth after each evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from das_gym.agents.compare.oracle import Oracle

from das_gym.problem.budget import Floats, Masks

QUARTILES = (25, 50, 75)


@dataclass(frozen=True, eq=False)
class AgentResult:
    """Results of one agent over all seeds.

    Attributes:
        agent: Its name.
        answers: (seeds, n_layers) its final answers.
        curves: (seeds, evaluations) reward, on the reward split, of the answer that it would have given after each
            evaluation, -inf while it has none. Masks that a model scores for the statistics of an ask/tell agent are
            evaluations, and come first. An agent that is done keeps its answer.
        evaluations: (seeds,) how many it used, with those that a model takes for the statistics that it reads.
        milliseconds: (seeds,) processor time per turn, of ask and tell; None if unknown.
        best_reward: Reward of the best mask; NaN before `judge`.
        ranks: (seeds,) of the final answers, 1 = the best mask, inf where there is none; None without ground truth.
        test_metrics: (seeds,) metrics of the answers on the test split, NaN where it had none; empty before `judge`.
    """

    agent: str
    answers: Masks
    curves: Floats
    evaluations: npt.NDArray[np.int64]
    milliseconds: Floats | None = None
    best_reward: float = float("nan")
    ranks: Floats | None = None
    test_metrics: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def regret(self) -> Floats:
        """(seeds, evaluations): the best reward minus the answer's; inf while there is no answer."""
        return np.maximum(self.best_reward - self.curves, 0.0)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(seeds, evaluations): whether the answer earns the best reward exactly."""
        return self.regret == 0

    def needed(self) -> Floats:
        """Return (seeds,) the evaluations from which on the answer is as good as the best mask; inf where it is not."""
        return evaluations_needed(self.found)

    def mean_regret(self) -> float:
        """Return the mean over seeds and evaluations, from each seed's first answer on; inf where a seed never had one."""
        regret = self.regret
        has_answer = np.isfinite(regret)
        totals = np.where(has_answer, regret, 0.0).sum(axis=1)
        means = np.full(len(totals), np.inf)
        np.divide(totals, has_answer.sum(axis=1), out=means, where=has_answer.any(axis=1))
        return float(means.mean())

    def record(self) -> dict[str, Any]:
        """Return plain JSON values: quartiles of the regret, and each seed's end; None where there is no answer."""
        return {
            "agent": self.agent,
            "regret": {f"q{percent}": _plain(quantile(self.regret, percent)) for percent in QUARTILES},
            "found": self.found.mean(axis=0).tolist(),
            "needed": _plain(self.needed(), int),
            "evaluations": self.evaluations.tolist(),
            "answers": self.answers.astype(int).tolist(),
            "rewards": _plain(self.curves[:, -1]),
            "ranks": None if self.ranks is None else _plain(self.ranks, int),
            "test_metrics": _plain(self.test_metrics),
        }


def evaluations_needed(found: npt.NDArray[np.bool_]) -> Floats:
    """Return (seeds,) the evaluations from which on (seeds, evaluations) `found` stays True; inf where it ends False."""
    missed = ~found
    last_miss = missed.shape[1] - np.argmax(missed[:, ::-1], axis=1)
    return np.where(missed[:, -1], np.inf, np.where(missed.any(axis=1), last_miss + 1.0, 1.0))


def _plain(values: npt.NDArray[Any], kind: type[float] = float) -> list[float | None]:
    return [kind(value) if np.isfinite(value) else None for value in values.tolist()]


def quantile(values: npt.NDArray[Any], percent: float) -> npt.NDArray[Any]:
    """Return the smallest of (seeds, ...) values that `percent` of the seeds do not exceed; values may be infinite."""
    return np.percentile(values, percent, axis=0, method="inverted_cdf")


def judge(oracle: Oracle, results: Sequence[AgentResult]) -> list[AgentResult]:
    """Return results with ranks and test metrics. Without ground truth, the best answer of all stands for the best mask."""
    best = oracle.best_reward
    if best is None:
        best = max(float(each.curves.max()) for each in results)
        best = best if np.isfinite(best) else 0.0  # no agent ever had an answer
    judged = []
    for each in results:
        has_answer, known = np.isfinite(each.curves[:, -1]), oracle.ranks(each.curves[:, -1])
        ranks = None if known is None else np.where(has_answer, known, np.inf)
        tests = np.where(has_answer, oracle.test_metrics(each.answers), np.nan)
        judged.append(replace(each, best_reward=best, ranks=ranks, test_metrics=tests))
    return judged
