"""Compare search agents on planted losses and on tables of real models.

    python -m benchmarks.search --cache FOLDER                              every suite; hours on one core
    python -m benchmarks.search --cache FOLDER --suites nk-24 tables-large  some suites
    python -m benchmarks.search --cache FOLDER --agents bayes local_search --seeds 10
    python -m benchmarks.search --cache FOLDER --train --seeds 10           the problems on which constants are tuned

FOLDER keeps the searches: a stopped command continues where it was. Use another folder after changing an agent.

  tables-large           the bundled tables of 24 units, 4 skipped, 120 evaluations
  tables-12              the seven bundled tables of 12 units, 4 skipped, 120 evaluations
  greedy-12              the same with 3 to 7 skipped, and as many evaluations as greedy removal uses
  llava-6, llava-8       LLaVA-mini with 6 and 8 of 24 layers skipped, scored by the engine; evaluations as in greedy-12
  llava-sublayers-12     the same with 12 of 48 attentions and MLPs skipped, 240 evaluations
  nk-24, pairs-36, ...   planted losses of a family and a number of layers, a third skipped; each seed is a problem

Regret is a share of the possible gain: 0 = the best known mask, 1 = the mean of random masks. Masks outside the budget count
as evaluations. Searches of a problem are distinct unless their answers are worth the same after each evaluation.

Train and test: the constants of `bayes` were chosen on `TRAIN_SEEDS` (planted losses of 24, 36 and 72 layers), on tables of
the suite's `train`, and its small masks on LLaVA-mini with 16 sub-layers skipped. Nothing was chosen on `TEST_SEEDS`.
Planted families are the same in both, their problems are not. The bundled tables are the same landscapes in both, only the
searches differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.search.problems import SUITES, suite_problems
from benchmarks.search.rivals import register_rivals
from benchmarks.search.runs import compare
from benchmarks.search.scores import Scores
from das_gym.drawing.table import markdown_table
from das_gym.intervals import mean_bootstrap_interval

AGENTS = ("bayes", "heat_kernel", "quadratic_regression", "local_search", "greedy", "random")


def report(scores: Scores) -> list[str]:
    """Return a Markdown table of a suite: a line for each agent, and its difference from the first agent."""
    rows = []
    first = scores.final_regrets(next(iter(scores.results)))
    for agent, results in scores.results.items():
        regrets = scores.final_regrets(agent)
        needed = scores.needed(agent)
        median = float(np.median(needed))
        rows.append(
            [
                agent,
                str(sum(len(np.unique(result.curves, axis=0)) for result in results)),
                with_interval(regrets),
                with_interval(regrets - first),
                f"{(regrets > first + 1e-9).sum()} / {(regrets < first - 1e-9).sum()}",
                f"{regrets.max():.3f}",
                f"{np.isfinite(needed).sum()} of {len(needed)}",
                f"{median:.0f}" if np.isfinite(median) else "-",
                f"{scores.milliseconds(agent):.1f}",
            ]
        )
    head = ["agent", "distinct", "mean regret", "minus the first", "worse / better", "worst", "optimum", "median", "ms"]
    return markdown_table(head, rows)


def with_interval(values: np.ndarray) -> str:
    """Return the mean with its 95 % bootstrap interval over searches."""
    low, high = mean_bootstrap_interval(values)
    return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what FOLDER lacks, and print a table for each suite."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--agents", nargs="+", default=AGENTS, help="the others are compared with the first")
    parser.add_argument("--seeds", type=int, help="number of seeds of each suite; all by default")
    parser.add_argument("--train", action="store_true", help="take the training seeds")
    given = parser.parse_args(arguments)
    register_rivals()
    for suite in given.suites:
        scores = compare(suite, suite_problems(suite, given.seeds, given.train), given.agents, given.cache)
        print(f"\n{suite}\n", *report(scores), sep="\n", flush=True)


if __name__ == "__main__":
    main()
