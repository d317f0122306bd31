"""Compare search agents on deeper masks of LLaVA-mini than its table holds, scored by the model.

    python -m benchmarks.search --cache FOLDER                              both problems; hours on one core
    python -m benchmarks.search --cache FOLDER --problems llava-6 --agents bayes local_search --seeds 3

FOLDER keeps the searches: a stopped command continues where it was. Use another folder after changing an agent.

  llava-6                6 of 24 layers skipped, as many evaluations as greedy removal uses
  llava-sublayers-12     12 of 48 attentions and MLPs skipped, 240 evaluations

Regret is a share of the possible gain: 0 = the best known mask, 1 = the mean of random masks. Masks outside the budget count
as evaluations. Searches of a problem are distinct unless their answers are worth the same after each evaluation. Tables and
planted losses are in `benchmarks.leaderboard`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import make_parser
from benchmarks.search.problems import LIVE, live_problems
from benchmarks.search.rivals import register_rivals
from benchmarks.search.runs import compare
from benchmarks.search.scores import Scores
from das_gym.drawing.report import markdown_table
from das_gym.intervals import mean_bootstrap_interval

AGENTS = ("bayes", "heat_kernel", "quadratic_regression", "local_search", "greedy", "random")


def report(scores: Scores) -> list[str]:
    """Return a Markdown table: a line for each agent, and its difference from the first agent."""
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
    """Run what FOLDER lacks, and print a table for each problem."""
    parser = make_parser("search", __doc__)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--problems", nargs="+", choices=LIVE, default=list(LIVE))
    parser.add_argument("--agents", nargs="+", default=AGENTS, help="the others are compared with the first")
    parser.add_argument("--seeds", type=int, help="number of seeds; all ten by default")
    given = parser.parse_args(arguments)
    register_rivals()
    for name in given.problems:
        scores = compare(name, live_problems(name, given.seeds), given.agents, given.cache)
        print(f"\n{name}\n", *report(scores), sep="\n", flush=True)


if __name__ == "__main__":
    main()
