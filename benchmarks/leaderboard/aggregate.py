"""Results on many problems, as in arXiv 2108.13264 (rliable): interquartile means with intervals, and profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.results import AgentResult

from das_gym.drawing.table import markdown_table
from das_gym.problem.budget import Floats

WORST = 2.0
"""The largest normalized regret, also that of an agent without an answer."""

SHARES = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Normalized regrets up to which a profile counts the searches."""

RESAMPLES = 2000


def normalized_regrets(oracle: Oracle, result: AgentResult) -> Floats:
    """Return (seeds, evaluations) regrets as fractions of the possible gain, see `Oracle.normalized`, `WORST` at most."""
    return np.minimum(oracle.normalized(result.regret), WORST)


@dataclass(frozen=True)
class Aggregate:
    """An agent on many problems.

    Attributes:
        agent: Its name.
        means: Interquartile mean of the normalized regret after each number of evaluations.
        intervals: 95 % bootstrap interval of each, resampling seeds within every problem.
        profile: Fraction of searches that end within each of `SHARES`.
        milliseconds: Mean processor time per turn; NaN if unknown.
    """

    agent: str
    means: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    profile: tuple[float, ...]
    milliseconds: float


def aggregate(
    oracles: Sequence[Oracle], results: Sequence[AgentResult], counts: Sequence[int], of_one_kind: bool = False
) -> Aggregate:
    """Aggregate one agent's results on several problems with the same seeds and evaluations.

    Args:
        oracles: The problems.
        results: The agent's result on each.
        counts: Numbers of evaluations to report.
        of_one_kind: Whether problems are drawn from seeds themselves, so that intervals resample them as well.
    """
    curves = np.stack([normalized_regrets(oracle, each) for oracle, each in zip(oracles, results, strict=True)])
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
    """Return the mean of the middle half of (..., n) values."""
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    means: Floats = ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return means


def interval(values: Floats) -> tuple[float, float]:
    """Return the 95 % interval of the interquartile mean of (problems, seeds) values, resampling seeds within problems."""
    rng, (problems, seeds) = np.random.default_rng(0), values.shape
    means = []
    for _ in range(RESAMPLES):
        drawn = np.take_along_axis(values, rng.integers(seeds, size=(problems, seeds)), axis=1)
        means.append(interquartile_mean(drawn.ravel()))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def differ(values: Floats, others: Floats) -> bool:
    """Whether the 95 % interval of the difference of two interquartile means, resampling problems, excludes 0.

    Args:
        values: (n,) one agent's, one per problem.
        others: (n,) another's, on the same problems.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(interquartile_mean(values[drawn]) - interquartile_mean(others[drawn]), (2.5, 97.5))
    return bool(low > 0 or high < 0)


def ranked(aggregates: Sequence[Aggregate]) -> list[Aggregate]:
    """Sort by the mean at the end; of equal ones, the one with the lower mean before is first."""
    return sorted(aggregates, key=lambda one: (one.means[::-1], one.agent))


def summary(aggregates: Sequence[Aggregate], counts: Sequence[int], best: str = "optimum") -> str:
    """Return a Markdown table, in the order of `ranked`.

    Args:
        aggregates: One per agent.
        counts: Numbers of evaluations of its means.
        best: Title of the column of searches that end at the best mask.
    """
    head = ["agent", *(f"at {count}" for count in counts)]
    head += [f"within {100 * share:g} %" if share else best for share in SHARES] + ["ms a turn"]
    rows = []
    for each in ranked(aggregates):
        means = zip(each.means, each.intervals, strict=True)
        cells = [each.agent, *(f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, (low, high) in means)]
        cells += [f"{100 * share:.0f} %" for share in each.profile]
        cells.append("-" if np.isnan(each.milliseconds) else f"{each.milliseconds:.1f}")
        rows.append(cells)
    return "\n".join(markdown_table(head, rows))
