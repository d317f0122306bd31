"""The leaderboard's section of planted problems: too many layers to list masks, each seed a problem of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.results import AgentResult, judge
from das_gym.agents.sb3.algorithms import is_algorithm

from benchmarks.leaderboard.aggregate import aggregate, differ, normalized_regrets, ranked, summary
from benchmarks.leaderboard.cache import ResultCache
from benchmarks.leaderboard.optuna_tpe import OPTUNA, has_optuna, run_optuna
from benchmarks.leaderboard.planted import EVALUATIONS, PlantedOracle
from das_gym.problem.budget import Budget, Floats
from das_gym.problem.mask_space import MaskSpace
from das_gym.wording import counted

MASKS_PER_TURN = 3

HEADING = "## Many layers"
NEXT_HEADING = "## Goals of our agent"


def without_statistics(agents: Sequence[str], n_layers: int) -> list[str]:
    """Return the ask/tell agents that read no layer statistics: planted problems have none."""
    found = []
    for name in agents:
        try:
            if not is_algorithm(name) and not make_agent(name, MaskSpace(Budget(n_layers, n_layers // 3))).statistics_read:
                found.append(name)
        except ValueError:  # it needs a statistic at once
            continue
    return found


class PlantedComparison:
    """The results of agents on planted problems with one number of layers.

    Args:
        n_layers: Layers of every problem, a key of `EVALUATIONS`.
        agents: Names; those that read layer statistics are left out. Optuna's TPE is added if it is installed.
        cache: Cache of results.
    """

    def __init__(self, n_layers: int, agents: Sequence[str], cache: ResultCache) -> None:
        self.n_layers, self.evaluations, self.cache = n_layers, EVALUATIONS[n_layers], cache
        self.agents = without_statistics(agents, n_layers) + ([OPTUNA] if has_optuna() else [])
        self.oracles: list[PlantedOracle] = []
        self.results: list[list[AgentResult]] = []

    def run(self, seed: int, on_agent: Callable[[str], Any]) -> None:
        """Run all agents on one more problem.

        Args:
            seed: Seed of the problem and of the agents.
            on_agent: Called with the name of each agent when it is done.
        """
        oracle = PlantedOracle(self.n_layers, seed)
        results = []
        for agent in self.agents:
            run = run_optuna if agent == OPTUNA else run_agent
            results.append(self.cache.run(oracle, agent, [seed], self.evaluations, MASKS_PER_TURN, {}, run))
            on_agent(agent)
        self.oracles.append(oracle)
        self.results.append(judge(oracle, results))

    def part(self) -> str:
        """Return the table of all agents, and a sentence about the best agents."""
        counts = [round(self.evaluations * share) for share in (1 / 3, 2 / 3, 1)]
        aggregates = [aggregate(self.oracles, each, counts, of_one_kind=True) for each in zip(*self.results, strict=True)]
        problems = list(zip(self.oracles, self.results, strict=True))
        ends = np.array([[normalized_regrets(oracle, each)[0, -1] for each in results] for oracle, results in problems])
        order = [each.agent for each in ranked(aggregates)]
        skipped, seeds = self.n_layers // 3, len(self.oracles)
        lines = [
            f"### {self.n_layers} layers, {skipped} skipped, {self.evaluations} evaluations, {counted(seeds, 'seed')}",
            "",
            winner_sentence(order, dict(zip(self.agents, ends.T, strict=True))),
            "",
            summary(aggregates, counts, "best known"),
        ]
        return "\n".join(lines)


def planted_section(comparisons: Sequence[PlantedComparison]) -> str:
    """Return the section, with a table for each number of layers."""
    about = ""
    if any(OPTUNA in each.agents for each in comparisons):
        about = (
            f"\n\n`{OPTUNA}` is Optuna's TPE (version {version(OPTUNA)}, multivariate, over one number per layer, of which "
            "the largest are skipped), asked for one mask at a time."
        )
    layers = ",".join(str(each.n_layers) for each in comparisons)
    parts = "\n\n".join(each.part() for each in comparisons)
    return f"""{HEADING}

Planted problems, whose masks cannot be listed. The loss has log-normal effects of single layers, so that few matter much,
and effects of pairs (`benchmarks/leaderboard/planted.py`). Each seed draws its own problem. Normalized regret is of
the loss here: 0 = the best known mask, from 200 climbs on the loss itself, which agents cannot see, and 1 = the mean
of random masks. Intervals are 95 % of 2,000 bootstrap samples over problems. Agents are ordered by their interquartile
mean at the end. Two agents do not differ if 95 % of the bootstrap differences of that mean, on the same problems, contain 0.
There is no model, and no agent that reads its statistics. `greedy` would need more evaluations than it has to
finish, and answers with what it knows.{about}

Only this section:

    python -m benchmarks.leaderboard with only_planted=True planted=[{layers}] seeds={len(comparisons[0].oracles)}

{parts}"""


def with_planted_section(text: str, section: str) -> str:
    """Return a leaderboard with the section in place of its old one, or before `NEXT_HEADING`.

    Raises:
        ValueError: it has no such heading.
    """
    before, after, rest = text.partition(NEXT_HEADING)
    if not after:
        raise ValueError(f"no line {NEXT_HEADING!r}. Give a file that `python -m benchmarks.leaderboard` wrote")
    return f"{before.partition(HEADING)[0]}{section}\n\n{after}{rest}"


def winner_sentence(order: Sequence[str], ends: Mapping[str, Floats]) -> str:
    """Return a sentence with the first agent and those that do not differ from it.

    Args:
        order: Agents, the best first.
        ends: Regrets of each agent at the end, (problems,), on the same problems.
    """
    first, *others = order
    alike = [f"`{agent}`" for agent in others if not differ(ends[first], ends[agent])]
    if not alike:
        return f"`{first}` is first, and no other is as good."
    named = alike[0] if len(alike) == 1 else f"{', '.join(alike[:-1])} and {alike[-1]}"
    return f"`{first}` is first. The difference to {named} is within the noise on these problems."
