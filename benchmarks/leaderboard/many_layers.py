"""The leaderboard's planted problems: so many layers that masks cannot be listed, each seed a problem of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.results import AgentResult, judge
from das_gym.agents.sb3.algorithms import is_algorithm

from benchmarks.leaderboard.aggregate import aggregate, normalised_regrets, ranked, summary, told_apart
from benchmarks.leaderboard.kept_traces import KeptTraces
from benchmarks.leaderboard.optuna_tpe import OPTUNA, has_optuna, trace_optuna
from benchmarks.leaderboard.planted import EVALUATIONS, PlantedOracle
from das_gym.problem.budget import Budget, Floats
from das_gym.problem.mask_space import MaskSpace
from das_gym.wording import counted

MASKS_PER_TURN = 3

HEADING = "## Many layers"
AFTER = "## Ours against what it must reach"
"""The section's heading, and that of the next."""


def without_statistics(agents: Sequence[str], n_layers: int) -> list[str]:
    """Those agents that read no layer statistics, of which a planted problem has none."""
    return [name for name in agents if not is_algorithm(name) and _reads_nothing(name, n_layers)]


def _reads_nothing(agent: str, n_layers: int) -> bool:
    try:
        return not make_agent(agent, MaskSpace(Budget(n_layers, n_layers // 3))).statistics_read
    except ValueError:  # it asks for a statistic at once
        return False


class ManyLayers:
    """What agents did on planted problems of one number of layers.

    Args:
        n_layers: Layers of every problem, a key of `EVALUATIONS`.
        agents: Names; those that read layer statistics are left out.
        kept: What was played before.
        optuna: Whether Optuna's TPE plays, too, where it is installed.
    """

    def __init__(self, n_layers: int, agents: Sequence[str], kept: KeptTraces, optuna: bool = True) -> None:
        self.n_layers, self.evaluations, self.kept = n_layers, EVALUATIONS[n_layers], kept
        self.agents = without_statistics(agents, n_layers) + ([OPTUNA] if optuna and has_optuna() else [])
        self.oracles: list[PlantedOracle] = []
        self.results: list[list[AgentResult]] = []

    def play(self, seed: int, on_agent: Callable[[str], Any]) -> None:
        """One more problem.

        Args:
            seed: Of the problem and of the agents.
            on_agent: Called with the name of each agent when it is done.
        """
        oracle = PlantedOracle(self.n_layers, seed)
        traces = []
        for agent in self.agents:
            play = trace_optuna if agent == OPTUNA else run_agent
            traces.append(self.kept.trace(oracle, agent, [seed], self.evaluations, MASKS_PER_TURN, {}, play))
            on_agent(agent)
        self.oracles.append(oracle)
        self.results.append(judge(oracle, traces))

    def part(self) -> str:
        """The table of all agents, and who is first in words."""
        counts = [round(self.evaluations * share) for share in (1 / 3, 2 / 3, 1)]
        aggregates = [aggregate(self.oracles, each, counts, of_one_kind=True) for each in zip(*self.results, strict=True)]
        problems = list(zip(self.oracles, self.results, strict=True))
        ends = np.array([[normalised_regrets(oracle, each)[0, -1] for each in played] for oracle, played in problems])
        order = [each.agent for each in ranked(aggregates)]
        skipped, seeds = self.n_layers // 3, len(self.oracles)
        lines = [
            f"### {self.n_layers} layers, {skipped} skipped, {self.evaluations} evaluations, {counted(seeds, 'seed')}",
            "",
            who_is_first(order, dict(zip(self.agents, ends.T, strict=True))),
            "",
            summary(aggregates, counts, "best known"),
        ]
        return "\n".join(lines)


def planted_section(planted: Sequence[ManyLayers]) -> str:
    """What agents did on planted problems, in the leaderboard's words, a table for each number of layers."""
    by_optuna = [each.n_layers for each in planted if OPTUNA in each.agents]
    about = (
        f"\n\n`{OPTUNA}` is Optuna's TPE (version {version(OPTUNA)}, multivariate, over one number a layer, of which the "
        "largest are skipped), asked for one mask at a time."
        if by_optuna
        else ""
    )
    settings = {
        "planted": [each.n_layers for each in planted],
        "planted_seeds": [len(each.oracles) for each in planted],
        "optuna": by_optuna,
    }
    words = " ".join(f"{name}={value}".replace(" ", "") for name, value in settings.items())
    parts = "\n\n".join(each.part() for each in planted)
    return f"""{HEADING}

Planted problems, whose masks cannot be listed: losses are effects of single layers, log-normal, so that few matter much, and
of pairs (`benchmarks/leaderboard/planted.py`). Each seed draws a problem of its own. Normalised regret is of
the loss here: 0 = the best mask known, the best of 200 climbs on the loss itself, which agents cannot see, and 1 = the mean
of random masks. Intervals are 95 % of 2,000 bootstrap samples, problems drawn anew. Agents are first by their
interquartile mean at the end; two cannot be told apart where 95 % of the differences of that mean, on the same problems
drawn anew, hold 0. There is no model, and no agent that reads its statistics. `greedy` would need more evaluations than it
has to be done, and answers with what it knows.{about}

This section alone is written by

    python -m benchmarks.leaderboard with only_planted=True {words}

{parts}"""


def with_planted_section(text: str, section: str) -> str:
    """A leaderboard with that section in the place of the one that it has, or else before `AFTER`.

    Raises:
        ValueError: it has no place for it.
    """
    before, after, rest = text.partition(AFTER)
    if not after:
        raise ValueError(f"no line {AFTER!r} in it: give a file that `python -m benchmarks.leaderboard` wrote")
    return f"{before.partition(HEADING)[0]}{section}\n\n{after}{rest}"


def who_is_first(order: Sequence[str], ends: Mapping[str, Floats]) -> str:
    """In words, with those that cannot be told from the first.

    Args:
        order: Agents, the best first.
        ends: (problems,) regrets of each at the end, on the same problems.
    """
    first, *others = order
    alike = [f"`{agent}`" for agent in others if not told_apart(ends[first], ends[agent])]
    if not alike:
        return f"`{first}` is first, and no other is as good."
    named = alike[0] if len(alike) == 1 else f"{', '.join(alike[:-1])} and {alike[-1]}"
    return f"`{first}` is first; {named} cannot be told from it on these problems."
