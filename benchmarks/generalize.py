"""Measure what layer statistics are worth: one mask chosen by them, against searches with few masks, on a suite's problems.

    python -m benchmarks.generalize                              the bundled suite's `test`; 4 minutes of one core
    python -m benchmarks.generalize --cache FOLDER               keep what is done: a stopped command continues
    python -m benchmarks.generalize --budgets latency            on problems of measured latency

Regret is a share of the possible gain: 0 = the optimum, 1 = skipping in a random order. Means are over problems. Intervals
are 95 % t-intervals, clustered by kind of model and task, since problems of one kind are alike (Cameron and Miller, 2015).

Rules and `sb3_suite` (examples/sb3_suite.py, which learns on `train`) read the statistics that one forward of the full
model gives, and choose one mask without scoring any. `leave_one_out` scores n + 1 masks of n units. `random` and `bayes` do
not read statistics; they have the best of the first N masks that they score. In `DAS-Suite-Search-v0` an episode of N masks
earns 1 - regret, at least 0.
"""

import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from das_gym.agents.comparing.comparison import run_agent
from das_gym.agents.comparing.oracle import SuiteOracle

from benchmarks.machine import keep_arrays, make_parser
from das_gym.commands.progress import progress
from das_gym.drawing.report import markdown_table
from das_gym.intervals import t_quantile
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, Suite, SuiteProblem, load_suite

EXAMPLE = Path(__file__).parents[1] / "examples" / "sb3_suite.py"
STEPS = 60_000
SB3 = "sb3_suite"

REFERENCE = "block_influence_tokens"
RULES = (REFERENCE, "block_influence_pooled", "residual_norm", "angular", "leave_one_out")
"""Rules of the field, which skip where a statistic is lowest."""

SEARCHES = {"random": 20, "bayes": 5}
"""Agents that search, and their seeds on each problem."""

COUNTS = (1, 5, 10, 20, 30)
"""After how many masks searches are measured; the last is the length of an episode of `DAS-Suite-Search-v0`."""

MASKS_PER_TURN = 3


def rule_regrets(suite: Suite, statistic: str) -> np.ndarray:
    """Return (P, 1) regrets of the masks with the lowest statistic; a budget by cost keeps again what it does not need."""
    found = []
    for problem in suite.problems:
        mask = MaskSpace(problem.budget).top(-problem.table.statistic(statistic).astype(float))
        reward = problem.rewards[problem.table.index(mask)]
        found.append((problem.optimum - reward) / (problem.optimum - problem.random_mean))
    return np.array(found)[:, None]


def search_regrets(suite: Suite, agent: str) -> np.ndarray:
    """Return (P, len(COUNTS)) mean regrets over seeds of the best of the first masks that an agent scores."""
    found = []
    with progress(len(suite.problems), agent, unit="problem") as bar:
        for problem in suite.problems:
            oracle = SuiteOracle(problem, suite.statistics)
            result = run_agent(oracle, agent, range(SEARCHES[agent]), COUNTS[-1], MASKS_PER_TURN, {})
            curves = oracle.normalized(problem.optimum - result.curves)
            found.append([curves[:, count - 1].mean() for count in COUNTS])
            bar.update()
    return np.array(found)


def trained_regrets(split: str, seed: int) -> np.ndarray:
    """Return (P, 1) regrets of the agent of `EXAMPLE`, trained from a seed."""
    example = runpy.run_path(str(EXAMPLE))
    regrets: np.ndarray = example["regrets"](example["train"](STEPS, seed), split)
    return regrets[:, None]


def cached(folder: Path | None, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that a folder keeps under a name, or compute and keep it; without a folder, compute it."""
    path = None if folder is None else folder / f"{name}.npz"
    return keep_arrays(path, lambda: {"regrets": compute()})["regrets"]


def measure(suite: Suite, split: str, sb3_seeds: int, folder: Path | None) -> dict[tuple[str, str], np.ndarray]:
    """Return (P,) regrets of each method, by its name and the number of masks that it scores."""
    found = {}
    for name in RULES:
        masks = "n + 1" if name == "leave_one_out" else "0"
        found[name, masks] = rule_regrets(suite, name)[:, 0]
    seeds = [cached(folder, f"{SB3}-{seed}", lambda seed=seed: trained_regrets(split, seed)) for seed in range(sb3_seeds)]
    if seeds:
        print(f"{SB3}, seed by seed: {', '.join(f'{each.mean():.3f}' for each in seeds)}\n")
        found[SB3, "0"] = np.mean(seeds, axis=0)[:, 0]
    for agent in SEARCHES:
        regrets = cached(folder, agent, lambda agent=agent: search_regrets(suite, agent))
        for place, count in enumerate(COUNTS):
            found[agent, str(count)] = regrets[:, place]
    return found


def cluster_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Return the 95 % t-interval of the mean of (n,) values of independent clusters, (n,) names; unbounded for 1 or 2."""
    mean = values.mean()
    names = np.unique(clusters)
    if len(names) < 3:
        return -np.inf, np.inf
    sums = np.array([(values[clusters == name] - mean).sum() for name in names])
    error = np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(values)
    width = t_quantile(len(names) - 1) * error
    return float(mean - width), float(mean + width)


def table(found: dict[tuple[str, str], np.ndarray], kinds: np.ndarray) -> list[str]:
    """Return a Markdown table of mean regrets, and of their differences from the reference, the lowest first."""
    rows = []
    reference = found[REFERENCE, "0"]
    for (name, masks), values in sorted(found.items(), key=lambda item: item[1].mean()):
        rows.append((name, masks, with_interval(values, kinds), with_interval(values - reference, kinds)))
    return markdown_table(("method", "masks scored", "mean regret", "minus block influence"), rows)


def with_interval(values: np.ndarray, kinds: np.ndarray) -> str:
    """Return the mean with its interval."""
    low, high = cluster_interval(values, kinds)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def kind_of(problem: SuiteProblem) -> str:
    """Return the kind of a problem's model and its task: `llava-answering`."""
    source = problem.source
    made = re.fullmatch(r"(?:train|valid|test)-\d+-(.+)", source.name)
    return made[1] if made else f"{source.model.lower()}-{source.task}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("generalize", __doc__)
    parser.add_argument("--suite", help="folder of a suite; the bundled one by default")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--budgets", nargs="+", default=DEFAULT_BUDGETS, choices=BUDGET_KINDS)
    parser.add_argument("--sb3-seeds", type=int, default=3, help="agents of examples/sb3_suite.py; 0 for another suite")
    parser.add_argument("--cache", type=Path, help="folder for what is done; use another one for other problems")
    options = parser.parse_args(arguments)
    suite = load_suite(options.suite, options.split, budgets=options.budgets)
    found = measure(suite, options.split, options.sb3_seeds, options.cache)
    kinds = np.array([kind_of(problem) for problem in suite.problems])
    print(f"{len(kinds)} problems of `{options.split}`, {len(np.unique(kinds))} kinds of models and tasks\n")
    print("\n".join(table(found, kinds)))


if __name__ == "__main__":
    main()
