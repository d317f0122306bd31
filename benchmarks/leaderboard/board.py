"""Compare all agents on the bundled tables, the suite's `test` and planted problems, and write LEADERBOARD.md.

python -m benchmarks.leaderboard                        100 seeds; two hours on one core
python -m benchmarks.leaderboard with seeds=20 out=mine.md
python -m benchmarks.leaderboard with cache=FOLDER      keep finished searches, so that a stopped command continues
python -m benchmarks.leaderboard with only_planted=True replace only the section of planted problems
python -m benchmarks.leaderboard with tables=FOLDER     other tables, named <short>_table.npz: meter_vqa_table.npz, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.compare.comparison import compare_agents
from das_gym.agents.compare.oracle import Oracle, SuiteOracle, TableOracle
from das_gym.agents.compare.results import TOLERANCE, AgentResult, quantile
from das_gym.agents.compare_experiment import COMPARED, cells, checkpoints, describe_budget
from das_gym.agents.listing import first_line
from das_gym.agents.sb3.config import check_agent_name

from benchmarks.leaderboard.aggregate import Aggregate, aggregate, ranked, summary
from benchmarks.leaderboard.cache import ResultCache
from benchmarks.leaderboard.planted import EVALUATIONS as PLANTED_EVALUATIONS
from benchmarks.leaderboard.planted_section import NEXT_HEADING, PlantedComparison, planted_section, with_planted_section
from benchmarks.leaderboard.regression import RIVALS, register_rivals
from das_gym.commandline import format_command, parse_or_help
from das_gym.config import check_names
from das_gym.drawing.table import markdown_table
from das_gym.files import at_home, write_text
from das_gym.progress import progress
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS, MODELS
from das_gym.runs import PluginSettings, library_versions
from das_gym.tables.suite import load_suite
from das_gym.wording import counted

BUDGETS: tuple[Mapping[str, Any], ...] = ({"skip_num": 4}, {"macs_saved": 0.12})
FURTHER_BUDGET = {"skip_num": 4}
"""Budget for tables of further checkpoints, which hold masks of few layers."""

EVALUATIONS = 120
OURS, BASELINE = "bayes", "random"
HALFWAY = 60
UNSEEN_EVALUATIONS = 60
UNSEEN_SEEDS = 5
"""Largest number of seeds per problem of the suite's `test`, of which there are many, and per further checkpoint."""

LEADERS = 10
"""Number of agents in the first table."""

MIN_FOUND, MAX_REGRET = 0.9, 0.2
"""Goals of our agent: fraction of seeds that find the best mask, and regret as a fraction of the baseline's."""


def find_tables(folder: Path | None) -> dict[str, Path]:
    """Return the table of each tabular environment that has one: in `folder`, or bundled."""
    tables = {}
    for entry in ENVIRONMENTS.values():
        path = entry.table if folder is None else folder / f"{entry.short}_table.npz"
        if path is not None and path.is_file():
            tables[entry.tabular_id] = path.absolute()
    return tables


def further_tables() -> list[tuple[str, Path]]:
    """Return tabular environment and table of each further bundled checkpoint, see `ModelEntry.others`."""
    found = []
    for entry in ENVIRONMENTS.values():
        paths = [folder / f"{entry.task}_table.npz" for folder in MODELS[entry.model].others]
        found += [(entry.tabular_id, path) for path in paths if path.is_file()]
    return found


class Comparison:
    """The results of all agents on some problems.

    Args:
        agents: Names of the agents.
        cache: Cache of results.
    """

    def __init__(self, agents: Sequence[str], cache: ResultCache) -> None:
        self.agents, self.cache = agents, cache
        self.oracles: list[Any] = []
        self.results: list[list[AgentResult]] = []

    def run(self, oracle: Oracle, seeds: int, evaluations: int, on_agent: Callable[[str], Any]) -> None:
        """Run all agents on one more problem."""
        run = self.cache.run
        self.oracles.append(oracle)
        self.results.append(compare_agents(oracle, self.agents, range(seeds), evaluations, on_agent=on_agent, run=run))

    def summary(self, evaluations: int) -> str:
        """Return one table of all problems."""
        return summary(self.ranked(evaluations), checkpoints(evaluations))

    def ranked(self, evaluations: int) -> list[Aggregate]:
        """Return the agents over all problems, the lowest mean regret first."""
        counts = checkpoints(evaluations)
        return ranked([aggregate(self.oracles, each, counts) for each in zip(*self.results, strict=True)])

    def sections(self) -> list[str]:
        """Return a table for each problem, the agent with the lowest mean regret first."""
        return [section(oracle, results) for oracle, results in zip(self.oracles, self.results, strict=True)]


def leaders(bundled: Sequence[Aggregate], unseen: Sequence[Aggregate]) -> str:
    """Return the ten best agents, sorted by the share of optima on both sets of problems, and a sentence about them."""
    other = {each.agent: each for each in unseen}
    order = sorted(bundled, key=lambda each: -(each.profile[0] + other[each.agent].profile[0]))[:LEADERS]
    head = ["agent", "bundled tables: optimum", f"regret at {HALFWAY}", "suite: optimum", f"regret at {UNSEEN_EVALUATIONS}"]
    rows = []
    for each in order:
        twin = other[each.agent]
        optima = [f"{100 * one.profile[0]:.0f} %" for one in (each, twin)]
        rows.append([each.agent, optima[0], f"{each.means[1]:.4f}", optima[1], f"{twin.means[-1]:.4f}"])
    best = [row[0] for row in rows if row[1:] == rows[0][1:]]
    who = f"`{best[0]}` leads" if len(best) == 1 else f"{', '.join(f'`{name}`' for name in best)} lead with equal scores"
    return "\n".join([f"{who} on the problems of 5 to 12 units.", "", *markdown_table(head, rows)])


def section(oracle: TableOracle, results: Sequence[AgentResult]) -> str:
    """Return the table of one problem."""
    meta, test = oracle.table.meta, oracle.table.values("metric", "test")
    allowed = test[oracle.space.contains(oracle.table.masks)]
    head = ["agent", *(f"regret at {count}" for count in checkpoints(EVALUATIONS))]
    head += ["rank", "found", "near", "needed", "used", f"test {meta.metric_name}"]
    rows = [[result.agent, *cells(result)] for result in sorted(results, key=AgentResult.mean_regret)]
    lines = [
        f"### {meta.env_id}, {oracle.table.n_layers} layers, {describe_budget(oracle)}",
        "",
        f"Best reward {oracle.best_reward:.4f}; test {meta.metric_name} of the median mask {np.median(allowed):.4f}, of the "
        f"best {allowed.max():.4f}, of the full model {test[0]:.4f}.",
        "",
        *markdown_table(head, rows),
    ]
    return "\n".join(lines)


def verdict(results: Mapping[str, Sequence[AgentResult]]) -> str:
    """Return a table that compares our agent with its goals, a line for every problem."""
    head = ["table", f"{OURS}: found", "needed, median (90 %)", f"regret at {HALFWAY}", f"{BASELINE}'s", "reached"]
    rows = []
    for name, all_agents in results.items():
        by_name = {result.agent: result for result in all_agents}
        ours, baseline = by_name[OURS], by_name[BASELINE]
        needed = [float(quantile(ours.needed(), percent)) for percent in (50, 90)]
        others = {each.agent: float(quantile(each.needed(), 50)) for each in all_agents if each.agent != OURS}
        rival = min(others, key=lambda agent: others[agent])
        halfway = [float(quantile(each.regret[:, HALFWAY - 1], 50)) for each in (ours, baseline)]
        found = ours.found[:, -1].mean()
        reached = found >= MIN_FOUND and halfway[0] <= MAX_REGRET * halfway[1]
        numbers = (f"{100 * found:.0f} %", f"{needed[0]:.0f} ({needed[1]:.0f})", *(f"{value:.4f}" for value in halfway))
        rows.append((name, *numbers, "yes" if reached else "no", f"{rival}: {others[rival]:.0f}"))
    return "\n".join(markdown_table([*head, "fewest needed besides"], rows))


def document(tables: Comparison, unseen: Comparison, further: Comparison, seeds: int) -> str:
    """Return the whole file without the section of planted problems."""
    pairs = zip(tables.oracles, tables.results, strict=True)
    by_name = {f"{oracle.table.meta.env_id}, {describe_budget(oracle)}": results for oracle, results in pairs}
    versions = library_versions()
    about = "\n".join(f"| `{name}` | {first_line(agent_class(name))} |" for name in tables.agents)
    many, few = counted(seeds, "seed"), counted(min(seeds, UNSEEN_SEEDS), "seed")
    sections = "\n".join(f"{each}\n" for each in (*tables.sections(), *further.sections()))
    return f"""# Leaderboard

{leaders(tables.ranked(EVALUATIONS), unseen.ranked(UNSEEN_EVALUATIONS))}

*Optimum*: share of searches that end at the best mask. *Regret*: interquartile mean of the normalized regret, 0 = the best
mask, 1 = layers skipped in a random order. Agents are sorted by the share of optima over both sets of problems.
`policy_bayes` also reads layer statistics, for which a model scores up to 3 n_layers + 1 masks that are not counted in this
table. For more layers see "Many layers". Written by

    python -m benchmarks.leaderboard with seeds={seeds}

with das_gym {versions["das_gym"]} and numpy {versions["numpy"]}. The same seeds give the same numbers, except for
milliseconds. To add an agent, add a file to `agents/ask_tell/` and a line to `das_gym.agents.ask_tell.base.AGENTS`, and run
the command again. `python -m agents compare with meter_vqa` compares agents on one table and draws a plot.

- {many}, {EVALUATIONS} evaluations, 3 masks a turn, unless stated otherwise. Agents only see rewards,
  exp(-loss), of the reward split.
- *Regret at n*: the best mask's reward minus that of the answer after n evaluations, median (quartiles). *Rank*: median
  rank of the final answer, 1 = best.
- *Found*: share of seeds whose final answer is the best mask. *Near*: within {100 * TOLERANCE:g} % of the best reward.
  *Needed*: median number of evaluations from which on the answer is the best mask. *Used*: evaluations of the agent (some
  finish early), and the masks that a model scores for the layer statistics that the agent reads.
- *Test*: mean metric of the final answers on the test split, which no agent sees.
- `greedy` and `leave_one_out` spend evaluations on masks that skip too little. `policy` and `policy_bayes` read
  statistics of single layers and of two and three neighbours, for which a model scores up to 3 n_layers + 1 masks. *Used*
  counts them; *regret at*, *needed* and the budget do not, since a table knows them. The statistics of other agents
  need no masks. `bandit` uses the learning rate of `python -m agents`.

| agent | method |
|---|---|
{about}

## All problems at once

As in arXiv 2108.13264 (rliable). *Normalized regret*: 0 = the best mask, 1 = layers skipped in a random order,
2 at most. *at n*: its interquartile mean over problems and seeds after n evaluations, with the 95 % interval of 2,000
bootstrap samples that resample seeds within problems. *optimum*, *within*: share of searches that end at the best mask, or
within a share of it. *ms a turn*: processor time to choose 3 masks, all problems together, on the machine that wrote this.

On the {len(unseen.oracles)} problems of the suite's `test` (`DAS-Suite-v0`),
{few} and {UNSEEN_EVALUATIONS} evaluations each. `policy` was trained on `train`, which has none of
these models. `bayes` was tuned on the bundled tables: some of the problems are of the same models, the others of related
models (see docs/suite.md):

{unseen.summary(UNSEEN_EVALUATIONS)}

On the {len(tables.oracles)} problems of the bundled tables, {many} and {EVALUATIONS} evaluations each:

{tables.summary(EVALUATIONS)}

A table of 24 layers is at the end, with {few}.

{NEXT_HEADING}

The goal of `{OURS}` (`agents/ask_tell/bayes.py`) is to find the best mask in at
least {100 * MIN_FOUND:.0f} % of the seeds, with a median regret at {HALFWAY} evaluations of at most {MAX_REGRET:g} of
random search's.

{verdict(by_name)}

## Table by table

{sections}"""


@dataclass(frozen=True)
class LeaderboardSettings(PluginSettings):
    """The settings of `python -m benchmarks.leaderboard`.

    Attributes:
        seeds: Number of searches of each agent, and of planted problems for each number of layers, at least 1.
        out: File to write.
        tables: Folder of tables. None uses the bundled ones.
        suite: Folder of a suite. None uses the bundled one.
        agents: Agents to compare, or "module:class" of your own. `bayes` and `random` have to be among them.
        planted: Numbers of layers of the planted problems. [] leaves them out.
        only_planted: Whether to run only the planted problems and replace their section in `out`.
        cache: Folder for finished searches, so that a stopped command continues when it is run again. None keeps nothing.
    """

    seeds: int = 100
    out: str = "LEADERBOARD.md"
    tables: str | None = None
    suite: str | None = None
    agents: tuple[str, ...] = tuple(sorted((*COMPARED, *RIVALS)))
    planted: tuple[int, ...] = (24, 36, 72)
    only_planted: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        for agent in self.agents:
            check_agent_name(agent)
        if missing := {OURS, BASELINE} - set(self.agents):
            raise ValueError(f"`agents` lacks {', '.join(sorted(missing))}: got {list(self.agents)}")
        if self.seeds < 1:
            raise ValueError(f"`seeds` is out of range: got {self.seeds}, expected 1 or more")
        check_names(map(str, self.planted), map(str, PLANTED_EVALUATIONS), "number of layers in `planted`,")
        if self.only_planted and not self.planted:
            raise ValueError("`only_planted=True` with `planted=[]` leaves nothing to run")


def main(words: Sequence[str] = ()) -> None:
    """Run the comparison that the words after `python -m benchmarks.leaderboard` describe, and write the file."""
    register_rivals()
    settings = parse_or_help(LeaderboardSettings, words, "benchmarks.leaderboard")
    if settings is None:
        return
    cache = ResultCache(None if settings.cache is None else at_home(settings.cache))
    out = Path(settings.out)
    text = out.read_text(encoding="utf-8") if settings.only_planted else run_tables(settings, cache)
    if settings.planted:
        with_planted_section(text, "")  # fails now rather than after hours if the file has no place for the section
        text = with_planted_section(text, run_planted(settings, cache))
    write_text(out, text)
    print(f"written: {out}")


def run_planted(settings: LeaderboardSettings, cache: ResultCache) -> str:
    """Return the section of planted problems."""
    planted = [PlantedComparison(n, settings.agents, cache) for n in settings.planted]
    with progress(settings.seeds * sum(len(each.agents) for each in planted), "planted problems", unit="agent") as bar:
        for each in planted:
            for seed in range(settings.seeds):
                each.run(seed, lambda agent: bar.update())
    return planted_section(planted)


def run_tables(settings: LeaderboardSettings, cache: ResultCache) -> str:
    """Return the file without that section, and print which tables are missing."""
    tables = find_tables(None if settings.tables is None else at_home(settings.tables))
    if not tables:
        command = format_command("agents table", ENVIRONMENTS[DEFAULT_ENV].short)
        raise ValueError(f"no tables <short>_table.npz in {settings.tables or 'the assets'}. Make one: `{command}`")
    suite = load_suite(settings.suite, "test")
    further = further_tables() if settings.tables is None else []
    few = min(settings.seeds, UNSEEN_SEEDS)
    bundled, unseen, more = (Comparison(settings.agents, cache) for _ in range(3))
    problems = len(tables) * len(BUDGETS) + len(suite.problems) + len(further)
    with progress(problems * len(settings.agents), "comparing", unit="agent") as bar:
        for budget in BUDGETS:
            for env_id, path in tables.items():
                oracle = TableOracle(env_id, budget, {"table": str(path)})
                bundled.run(oracle, settings.seeds, EVALUATIONS, lambda agent: bar.update())
        for problem in suite.problems:
            unseen.run(SuiteOracle(problem, suite.statistics), few, UNSEEN_EVALUATIONS, lambda agent: bar.update())
        for env_id, path in further:
            oracle = TableOracle(env_id, FURTHER_BUDGET, {"table": str(path)})
            more.run(oracle, few, EVALUATIONS, lambda agent: bar.update())
    print(f"{counted(len(tables), 'table')}, {len(BUDGETS)} budgets, {counted(settings.seeds, 'seed')}")
    missing = [entry.short for entry in ENVIRONMENTS.values() if entry.tabular_id not in tables]
    if missing:
        print(f"without a table: {', '.join(missing)}")
    return document(bundled, unseen, more, settings.seeds)
