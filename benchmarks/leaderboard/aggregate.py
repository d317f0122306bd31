"""Many problems at once, as arXiv 2108.13264 would have runs told: interquartile means with intervals, and profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.results import AgentResult

from das_gym.drawing.table import markdown_table
from das_gym.problem.budget import Floats

WORST = 2.0
"""The largest normalised regret, also that of an agent without an answer."""

SHARES = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Normalised regrets up to which a profile counts the searches."""

RESAMPLES = 2000


def normalised_regrets(oracle: Oracle, result: AgentResult) -> Floats:
    """(seeds, evaluations) regrets as shares of what there is to gain, see `Oracle.normalized`, `WORST` at most.

    Raises:
        ValueError: an oracle that does not know what there is to gain.
    """
    return np.minimum(oracle.normalized(result.regret), WORST)


@dataclass(frozen=True)
class Aggregate:
    """An agent on many problems.

    Attributes:
        agent: Its name.
        means: Interquartile mean of the normalised regret after each number of evaluations that was asked for.
        intervals: 95 % of each, seeds drawn anew within every problem.
        profile: Share of searches that end within each of `SHARES`.
        milliseconds: Of processor time a turn, in the mean; NaN where nobody knows.
    """

    agent: str
    means: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    profile: tuple[float, ...]
    milliseconds: float


def aggregate(
    oracles: Sequence[Oracle], results: Sequence[AgentResult], counts: Sequence[int], of_one_kind: bool = False
) -> Aggregate:
    """One agent's results on several problems, all with as many seeds and evaluations.

    Args:
        oracles: What was searched.
        results: Of the agent on each.
        counts: Numbers of evaluations to tell of.
        of_one_kind: Problems are themselves drawn from seeds, and intervals draw them anew as well.
    """
    curves = np.stack([normalised_regrets(oracle, each) for oracle, each in zip(oracles, results, strict=True)])
    if of_one_kind:
        curves = curves.reshape(1, -1, curves.shape[2])
    at = [curves[:, :, count - 1] for count in counts]
    return Aggregate(
        results[0].agent,
        tuple(float(interquartile_mean(values.ravel())) for values in at),
        tuple(interval(values) for values in at),
        tuple(float((curves[:, :, -1] <= share + 1e-12).mean()) for share in SHARES),
        float(np.mean([np.nan if each.milliseconds is None else each.milliseconds.mean() for each in results])),
    )


def interquartile_mean(values: Floats) -> Floats:
    """(...) the mean of the middle half of (..., n) values."""
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    means: Floats = ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return means


def interval(values: Floats) -> tuple[float, float]:
    """95 % of the interquartile means of (problems, seeds) values, seeds drawn anew within every problem."""
    rng, (problems, seeds) = np.random.default_rng(0), values.shape
    means = []
    for _ in range(RESAMPLES):
        drawn = np.take_along_axis(values, rng.integers(seeds, size=(problems, seeds)), axis=1)
        means.append(interquartile_mean(drawn.ravel()))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def told_apart(values: Floats, others: Floats) -> bool:
    """Whether 95 % of the differences of two interquartile means, problems drawn anew, are on one side of 0.

    Args:
        values: (n,) one agent's, a problem each.
        others: (n,) another's, on the same problems.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(interquartile_mean(values[drawn]) - interquartile_mean(others[drawn]), (2.5, 97.5))
    return bool(low > 0 or high < 0)


def ranked(aggregates: Sequence[Aggregate]) -> list[Aggregate]:
    """The agent with the lowest mean at the end first; of equal ones the one with the lower mean before."""
    return sorted(aggregates, key=lambda one: (one.means[::-1], one.agent))


def summary(aggregates: Sequence[Aggregate], counts: Sequence[int], best: str = "optimum") -> str:
    """A Markdown table, in the order of `ranked`; "-" for a time that nobody knows.

    Args:
        aggregates: One an agent.
        counts: After how many evaluations its means are.
        best: Head of the column of searches that end at the best mask.
    """
    head = ["agent", *(f"at {count}" for count in counts)]
    head += [f"within {100 * share:g} %" if share else best for share in SHARES] + ["ms a turn"]
    rows = []
    for each in ranked(aggregates):
        told = zip(each.means, each.intervals, strict=True)
        cells = [each.agent, *(f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, (low, high) in told)]
        cells += [f"{100 * share:.0f} %" for share in each.profile]
        cells.append("-" if np.isnan(each.milliseconds) else f"{each.milliseconds:.1f}")
        rows.append(cells)
    return "\n".join(markdown_table(head, rows))
