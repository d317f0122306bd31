"""Run agents on problems, and keep finished searches on disk, so that a stopped comparison continues."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from das_gym.agents.comparing.comparison import AgentResult, check_agent, judge, run_agent, search_config
from das_gym.agents.sb3.algorithms import is_algorithm

import das_gym
from benchmarks.harness import keep_arrays
from benchmarks.search.problems import SearchProblem
from benchmarks.search.rivals import OPTUNA, run_optuna
from benchmarks.search.scores import Scores
from das_gym.commands.progress import progress

MASKS_PER_TURN = 3
SB3_SEEDS = 2
"""Most seeds of an algorithm of Stable-Baselines3, which takes a second a search."""

ARRAYS = ("answers", "curves", "evaluations", "milliseconds")


def compare(title: str, problems: Sequence[SearchProblem], agents: Sequence[str], folder: Path | None) -> Scores:
    """Run each agent on each problem; `folder` keeps the searches.

    Where the best mask is unknown, the best one of all searches counts as such. The problems then share one oracle.
    """
    results: dict[str, list[AgentResult]] = {agent: [] for agent in agents}
    with progress(len(problems) * len(agents), title, unit="agent") as bar:
        for problem in problems:
            for agent in agents:
                results[agent].append(run_cached(folder, problem, agent))
                bar.update()
    if problems[0].oracle.best_reward is None:
        problems[0].oracle.best_reward = max(float(each.curves.max()) for found in results.values() for each in found)
    for agent, found in results.items():
        results[agent] = [judge(problem.oracle, [each])[0] for problem, each in zip(problems, found, strict=True)]
    return Scores(problems, results)


def run_cached(folder: Path | None, problem: SearchProblem, agent: str) -> AgentResult:
    """Return an agent's searches of a problem from a folder, or run and add them; without a folder, run them.

    A file belongs to a version of das_gym, a problem's budget and rewards, and the seeds. Use another folder after changing
    an agent.
    """
    seeds = problem.seeds[:SB3_SEEDS] if is_algorithm(agent) else problem.seeds
    oracle = problem.oracle
    shape = (seeds, problem.evaluations, MASKS_PER_TURN, {})
    named = (oracle.env_id, oracle.space.budget.as_dict(), oracle.best_reward, oracle.random_reward)
    key = hashlib.sha256(repr((das_gym.__version__, named, (agent, *shape))).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", f"{oracle.env_id}-{agent}")
    path = None if folder is None else folder / f"{name}-{key}.npz"

    def search() -> dict[str, np.ndarray]:
        if agent != OPTUNA:
            check_agent(oracle, search_config(oracle, agent, problem.evaluations, MASKS_PER_TURN, {}))
        result = (run_optuna if agent == OPTUNA else run_agent)(oracle, agent, *shape)
        return {name: getattr(result, name) for name in ARRAYS}

    arrays = keep_arrays(path, search)
    return AgentResult(agent, *(arrays[name] for name in ARRAYS))
