"""All agents on all bundled tables, on the suite's `test` and on planted problems: LEADERBOARD.md, from one command.

python -m benchmarks.leaderboard                        100 seeds; two hours on one core
python -m benchmarks.leaderboard with seeds=20 out=mine.md
python -m benchmarks.leaderboard with cache=FOLDER      keeps what was played, so that a stopped one goes on
python -m benchmarks.leaderboard with only_planted=True  their section alone; the others of the file stay as they are
python -m benchmarks.leaderboard with tables=FOLDER     tables elsewhere, named <short>_table.npz: meter_vqa_table.npz, ...
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

from benchmarks.leaderboard.aggregate import aggregate, summary
from benchmarks.leaderboard.kept_traces import KeptTraces
from benchmarks.leaderboard.many_layers import AFTER, ManyLayers, planted_section, with_planted_section
from benchmarks.leaderboard.planted import EVALUATIONS as PLANTED_EVALUATIONS
from benchmarks.leaderboard.regression import RIVALS
from das_gym.commandline import format_command, parse_or_help
from das_gym.drawing.table import markdown_table
from das_gym.files import at_home, write_text
from das_gym.progress import progress
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS, MODELS
from das_gym.runs import PluginSettings, library_versions
from das_gym.tables.suite import load_suite
from das_gym.wording import counted

BUDGETS: tuple[Mapping[str, Any], ...] = ({"skip_num": 4}, {"macs_saved": 0.12})
FURTHER_BUDGET = {"skip_num": 4}
"""On tables of further checkpoints, which hold masks of few layers."""

EVALUATIONS = 120
SEEDS = 100
OURS, BASELINE = "bayes", "random"
HALFWAY = 60
UNSEEN_EVALUATIONS = 60
UNSEEN_SEEDS = 5
"""At most, on each problem of the suite's `test`, which are many, and on tables of further checkpoints."""

PLANTED = (24, 36, 72)
"""Numbers of layers of the planted problems."""

MIN_FOUND, MAX_REGRET = 0.9, 0.2
"""What our agent is to reach: this share of seeds, and this share of the baseline's regret."""


def find_tables(folder: Path | None) -> dict[str, Path]:
    """Id of each tabular environment to its table, where there is one: in `folder`, or bundled."""
    tables = {}
    for entry in ENVIRONMENTS.values():
        path = entry.table if folder is None else folder / f"{entry.short}_table.npz"
        if path is not None and path.is_file():
            tables[entry.tabular_id] = path.absolute()
    return tables


def further_tables() -> list[tuple[str, Path]]:
    """Id of the tabular environment and table of each further bundled checkpoint, see `ModelEntry.others`."""
    places = [
        (entry, folder / f"{entry.task}_table.npz")
        for entry in ENVIRONMENTS.values()
        for folder in MODELS[entry.model].others
    ]
    return [(entry.tabular_id, path) for entry, path in places if path.is_file()]


def section(oracle: TableOracle, results: Sequence[AgentResult]) -> str:
    """One table of results, the agent with the lowest mean regret first."""
    meta = oracle.table.meta
    best, test = oracle.table.masks, oracle.table.values("metric", "test")
    allowed = oracle.space.contains(best)
    head = ["agent", *(f"regret at {count}" for count in checkpoints(EVALUATIONS))]
    head += ["rank", "found", "near", "needed", "used", f"test {meta.metric_name}"]
    rows = [[result.agent, *cells(result)] for result in sorted(results, key=AgentResult.mean_regret)]
    lines = [
        f"### {meta.env_id}, {oracle.table.n_layers} layers, {describe_budget(oracle)}",
        "",
        f"Best reward {oracle.best_reward:.4f}; test {meta.metric_name} of the median allowed mask "
        f"{np.median(test[allowed]):.4f}, of the best {test[allowed].max():.4f}, of the unskipped model {test[0]:.4f}.",
        "",
        *markdown_table(head, rows),
    ]
    return "\n".join(lines)


def verdict(results: Mapping[str, Sequence[AgentResult]]) -> str:
    """How our agent does against what it must reach, a line for every table."""
    head = (
        "table",
        f"{OURS}: found",
        "needed, median (90 %)",
        f"regret at {HALFWAY}",
        f"{BASELINE}'s",
        "reached",
        "fewest needed besides",
    )
    rows = []
    for name, all_agents in results.items():
        by_name = {result.agent: result for result in all_agents}
        ours, baseline = by_name[OURS], by_name[BASELINE]
        needed = [float(quantile(ours.needed(), percent)) for percent in (50, 90)]
        others = {s.agent: float(quantile(s.needed(), 50)) for s in all_agents if s.agent != OURS}
        rival = min(others, key=lambda agent: others[agent])
        halfway = [float(quantile(each.regret[:, HALFWAY - 1], 50)) for each in (ours, baseline)]
        found = ours.found[:, -1].mean()
        reached = found >= MIN_FOUND and halfway[0] <= MAX_REGRET * halfway[1]
        numbers = (f"{100 * found:.0f} %", f"{needed[0]:.0f} ({needed[1]:.0f})", *(f"{value:.4f}" for value in halfway))
        rows.append((name, *numbers, "yes" if reached else "no", f"{rival}: {others[rival]:.0f}"))
    return "\n".join(markdown_table(head, rows))


class Played:
    """What all agents did on some problems.

    Args:
        agents: Their names.
        kept: What was played before.
    """

    def __init__(self, agents: Sequence[str], kept: KeptTraces) -> None:
        self.agents, self.kept = agents, kept
        self.oracles: list[Any] = []
        self.results: list[list[AgentResult]] = []

    def play(self, oracle: Oracle, seeds: int, evaluations: int, on_agent: Callable[[str], Any]) -> None:
        """One more problem."""
        self.oracles.append(oracle)
        trace = self.kept.trace
        self.results.append(compare_agents(oracle, self.agents, range(seeds), evaluations, on_agent=on_agent, run=trace))

    def summary(self, evaluations: int) -> str:
        """All of them in one table."""
        counts = checkpoints(evaluations)
        return summary([aggregate(self.oracles, each, counts) for each in zip(*self.results, strict=True)], counts)


def document(tables: Played, unseen: Played, further: Played, seeds: int) -> str:
    """The whole file but the section of planted problems."""
    pairs = list(zip(tables.oracles, tables.results, strict=True))
    by_name = {f"{oracle.table.meta.env_id}, {describe_budget(oracle)}": results for oracle, results in pairs}
    sections = [
        section(oracle, results) for oracle, results in (*pairs, *zip(further.oracles, further.results, strict=True))
    ]
    versions = library_versions()
    about = "\n".join(f"| `{name}` | {first_line(agent_class(name))} |" for name in tables.agents)
    near = f"within {100 * TOLERANCE:g} % of the best reward"
    many, few = counted(seeds, "seed"), counted(min(seeds, UNSEEN_SEEDS), "seed")
    return f"""# Leaderboard

Which agent finds the best mask, and after how many evaluations? Written by

    python -m benchmarks.leaderboard with seeds={seeds}

on das_gym {versions["das_gym"]}, numpy {versions["numpy"]}; same seeds, same numbers, but for milliseconds.
Add an agent: one file in `agents/ask_tell/`, one line in `das_gym.agents.ask_tell.base.AGENTS`, and run the command again.
`python -m agents compare with meter_vqa` plays on one table and draws a picture.

- {many}, {EVALUATIONS} evaluations each, 3 masks a turn, where nothing else is said. Agents see rewards,
  exp(-loss), of the reward split alone.
- *Regret*: the best mask's reward minus that of the answer an agent would give after so many evaluations, median
  (quartiles). *Rank*: median rank of the final answer, 1 = best.
- *Found*: share of seeds whose final answer is the best mask. *Near*: {near}. *Needed*: median number of
  evaluations from which on the answer is the best mask. *Used*: evaluations asked for (some
  agents are done early), and the masks that a model scores for the layer statistics which an agent reads.
- *Test*: mean metric of the final answers on the test split, which no agent sees.
- `greedy` and `leave_one_out` spend evaluations on masks that skip too little. `policy` and `policy_bayes` read
  statistics of single layers and of two and three neighbours, for which a model scores up to 3 n_layers + 1 masks: *used*
  counts them; *regret at*, *needed* and the budget do not, since a table knows them. Where they are not known, `bayes`
  mostly finds the best mask with as many. What the other agents read takes no mask.
  `bandit` learns with the rate that `python -m agents` gives it.

| agent | what it is |
|---|---|
{about}

## All problems at once

As arXiv 2108.13264 (rliable) would have it. *Normalised regret*: 0 = the best mask, 1 = layers skipped in a random order,
2 at most. *at n*: its interquartile mean over problems and seeds after n evaluations, and 95 % of 2,000 bootstrap samples,
seeds drawn anew within every problem. *optimum*, *within*: share of searches that end at the best mask, or within so much
of it. *ms a turn*: processor time that choosing 3 masks takes, all problems together, on the machine that wrote this.

On the {len(unseen.oracles)} problems of the suite's `test` (`DAS-Suite-v0`),
{few} and {UNSEEN_EVALUATIONS} evaluations each. `policy` was trained on `train`, which has none of
these models. `bayes` was tuned on the bundled tables: some of the problems are of the same models, the others of relatives
of theirs (docs/suite.md says which):

{unseen.summary(UNSEEN_EVALUATIONS)}

On the {len(tables.oracles)} problems of the bundled tables, {many} and {EVALUATIONS} evaluations each:

{tables.summary(EVALUATIONS)}

A table of 24 layers is at the end, with {few}.

{AFTER}

`{OURS}` (`agents/ask_tell/bayes.py` says how) is to find the best mask in at
least {100 * MIN_FOUND:.0f} % of the seeds, with a median regret at {HALFWAY} evaluations of at most {MAX_REGRET:g} of
random search's.

{verdict(by_name)}

## Table by table

{chr(10).join(part + chr(10) for part in sections)}"""


@dataclass(frozen=True)
class LeaderboardSettings(PluginSettings):
    """The settings of `python -m benchmarks.leaderboard`.

    Attributes:
        seeds: Number of searches of each agent, at least 1.
        out: File to write.
        tables: Folder of tables. None uses the bundled ones.
        suite: Folder of a suite. None uses the bundled one.
        agents: Agents to compare, or "module:class" of your own. `bayes` and `random` have to be among them.
        planted: Numbers of layers of the planted problems, whose best mask is known. [] leaves them out.
        planted_seeds: Number of planted problems for each number of layers, at least 1. None means `seeds`.
        optuna: Numbers of layers for which Optuna's TPE is compared too, if Optuna is installed.
        only_planted: Whether to play the planted problems only and replace their section in `out`.
        cache: Folder for finished searches, so that a stopped command continues when it is run again. None keeps nothing.
    """

    seeds: int = SEEDS
    out: str = "LEADERBOARD.md"
    tables: str | None = None
    suite: str | None = None
    agents: tuple[str, ...] = tuple(sorted((*COMPARED, *RIVALS)))
    planted: tuple[int, ...] = PLANTED
    planted_seeds: tuple[int, ...] | None = None
    optuna: tuple[int, ...] = PLANTED
    only_planted: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        for agent in self.agents:
            check_agent_name(agent)
        if missing := {OURS, BASELINE} - set(self.agents):
            raise ValueError(f"agents={list(self.agents)}: {', '.join(sorted(missing))} has to be among them")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} is not allowed; give a whole number from 1 on")
        counts = self.seeds_of_planted
        if len(counts) != len(self.planted) or min(counts, default=1) < 1:
            raise ValueError(
                f"planted_seeds={list(counts)}: give a number from 1 on for each of planted={list(self.planted)}"
            )
        if self.only_planted and not self.planted:
            raise ValueError("only_planted=True with planted=[]: nothing is left to play")
        if set(self.planted) - PLANTED_EVALUATIONS.keys():
            raise ValueError(f"planted={list(self.planted)}: give some of {', '.join(map(str, PLANTED_EVALUATIONS))}")

    @property
    def seeds_of_planted(self) -> tuple[int, ...]:
        """Problems of each number of layers in `planted`."""
        return (self.seeds,) * len(self.planted) if self.planted_seeds is None else self.planted_seeds


def main(words: Sequence[str] = ()) -> None:
    """Play as the words behind `python -m benchmarks.leaderboard` say, and write the file."""
    settings = parse_or_help(LeaderboardSettings, words, "benchmarks.leaderboard")
    if settings is None:
        return
    kept = KeptTraces(None if settings.cache is None else at_home(settings.cache))
    out = Path(settings.out)
    text = out.read_text(encoding="utf-8") if settings.only_planted else play_tables(settings, kept)
    if settings.planted:
        with_planted_section(text, "")  # or it would be found out after hours that there is no place for it
        text = with_planted_section(text, play_planted(settings, kept))
    write_text(out, text)
    print(f"written: {out}")


def play_planted(settings: LeaderboardSettings, kept: KeptTraces) -> str:
    """The section of planted problems."""
    planted = [ManyLayers(n, settings.agents, kept, optuna=n in settings.optuna) for n in settings.planted]
    problems = list(zip(planted, settings.seeds_of_planted, strict=True))
    with progress(sum(seeds * len(each.agents) for each, seeds in problems), "planted problems", unit="agent") as bar:
        for each, seeds in problems:
            for seed in range(seeds):
                each.play(seed, lambda agent: bar.update())
    return planted_section(planted)


def play_tables(settings: LeaderboardSettings, kept: KeptTraces) -> str:
    """The file without that section; what is missing in it is printed."""
    tables = find_tables(None if settings.tables is None else at_home(settings.tables))
    if not tables:
        raise ValueError(
            f"no tables named <short>_table.npz in {settings.tables or 'the assets'}; "
            f"`{format_command('agents table', ENVIRONMENTS[DEFAULT_ENV].short)}` makes one"
        )
    suite = load_suite(settings.suite, "test")
    played, unseen, further = (Played(settings.agents, kept) for _ in range(3))
    more = further_tables() if settings.tables is None else []
    few = min(settings.seeds, UNSEEN_SEEDS)
    problems = len(tables) * len(BUDGETS) + len(suite.problems) + len(more)
    with progress(problems * len(settings.agents), "playing", unit="agent") as bar:
        for budget in BUDGETS:
            for env_id, path in tables.items():
                oracle = TableOracle(env_id, budget, {"table": str(path)})
                played.play(oracle, settings.seeds, EVALUATIONS, lambda agent: bar.update())
        for problem in suite.problems:
            unseen.play(SuiteOracle(problem, suite.statistics), few, UNSEEN_EVALUATIONS, lambda agent: bar.update())
        for env_id, path in more:
            oracle = TableOracle(env_id, FURTHER_BUDGET, {"table": str(path)})
            further.play(oracle, few, EVALUATIONS, lambda agent: bar.update())
    print(f"{counted(len(tables), 'table')}, {len(BUDGETS)} budgets, {counted(settings.seeds, 'seed')}")
    missing = [entry.short for entry in ENVIRONMENTS.values() if entry.tabular_id not in tables]
    if missing:
        print(f"without a table, and so left out: {', '.join(missing)}")
    return document(played, unseen, further, settings.seeds)
