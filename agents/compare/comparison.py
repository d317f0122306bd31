"""Compare agents: many seeds each, equal budgets, judged by what their answers are worth on the ground truth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from das_gym.agents.ask_tell.base import Agent, agent_class, answer, ask
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.loop import make_search_agent, search

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.statistics import masks_needed

QUARTILES = (25, 50, 75)


@dataclass(frozen=True)
class SearchTrial:
    """One search of an agent.

    Attributes:
        variant: Name of the agent.
        seed: Its random seed.
        answer: 0 or 1 per layer, 1 = skipped; nothing is skipped where no mask within the budget was scored.
        improvements: (evaluation, reward) of each scored mask within the budget that is better than all before it.
        evaluations: Number of scored masks, with those that a model scores for the statistics that the agent reads.
        milliseconds: Processor time per turn, of ask and tell.
    """

    variant: str
    seed: int
    answer: tuple[int, ...]
    improvements: tuple[tuple[int, float], ...]
    evaluations: int
    milliseconds: float

    def curve(self, evaluations: int) -> Floats:
        """Return (evaluations,) rewards of the best mask so far, -inf before the first."""
        rewards = np.full(evaluations, -np.inf)
        for evaluation, reward in self.improvements:
            rewards[evaluation - 1 :] = np.maximum(rewards[evaluation - 1 :], reward)
        return rewards


@dataclass(frozen=True, eq=False)
class AgentResult:
    """Results of one agent over all seeds.

    Attributes:
        agent: Its name.
        answers: (seeds, n_layers) its final answers.
        curves: (seeds, evaluations) reward, on the reward split, of the best mask within the budget among the first 1, 2,
            ... scored masks, -inf while there is none. Masks that a model scores for the statistics that an agent reads
            are evaluations, and come first. An agent that is done has its answer scored, if it was not.
        evaluations: (seeds,) how many it used, with those that a model takes for the statistics that it reads.
        milliseconds: (seeds,) processor time per turn, of ask and tell; None if unknown.
        best_reward: Reward of the best mask; NaN before `judge`.
        ranks: (seeds,) of the final answers, 1 = the best mask, inf where there is none; None without ground truth.
        test_metrics: (seeds,) metrics of the answers on the test split, NaN where it had none; empty before `judge`.
    """

    agent: str
    answers: Masks
    curves: Floats
    evaluations: npt.NDArray[np.int64]
    milliseconds: Floats | None = None
    best_reward: float = float("nan")
    ranks: Floats | None = None
    test_metrics: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, trials: Sequence[SearchTrial], evaluations: int) -> AgentResult:
        """Return the results of one agent's trials, one for each seed."""
        return cls(
            agent=trials[0].variant,
            answers=np.array([trial.answer for trial in trials], dtype=bool),
            curves=np.array([trial.curve(evaluations) for trial in trials]),
            evaluations=np.array([trial.evaluations for trial in trials]),
            milliseconds=np.array([trial.milliseconds for trial in trials]),
        )

    @property
    def regret(self) -> Floats:
        """(seeds, evaluations): the best reward minus the answer's; inf while there is no answer."""
        return np.maximum(self.best_reward - self.curves, 0.0)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(seeds, evaluations): whether the answer earns the best reward exactly."""
        return self.regret == 0

    def needed(self) -> Floats:
        """Return (seeds,) the evaluations from which on the answer is as good as the best mask; inf where it is not."""
        return evaluations_needed(self.found)

    def mean_regrets(self) -> Floats:
        """Return (seeds,) means over evaluations, from each seed's first answer on; inf where a seed never had one."""
        regret = self.regret
        has_answer = np.isfinite(regret)
        totals = np.where(has_answer, regret, 0.0).sum(axis=1)
        means = np.full(len(totals), np.inf)
        np.divide(totals, has_answer.sum(axis=1), out=means, where=has_answer.any(axis=1))
        return means

    def mean_regret(self) -> float:
        """Return the mean of `mean_regrets`."""
        return float(self.mean_regrets().mean())


def evaluations_needed(found: npt.NDArray[np.bool_]) -> Floats:
    """Return (seeds,) the evaluations from which on (seeds, evaluations) `found` stays True; inf where it ends False."""
    missed = ~found
    last_miss = missed.shape[1] - np.argmax(missed[:, ::-1], axis=1)
    return np.where(missed[:, -1], np.inf, np.where(missed.any(axis=1), last_miss + 1.0, 1.0))


def quantile(values: npt.NDArray[Any], percent: float) -> npt.NDArray[Any]:
    """Return the smallest of (seeds, ...) values that `percent` of the seeds do not exceed; values may be infinite."""
    return np.percentile(values, percent, axis=0, method="inverted_cdf")


def judge(oracle: Oracle, results: Sequence[AgentResult]) -> list[AgentResult]:
    """Return results with ranks and test metrics. Without ground truth, the best answer of all stands for the best mask."""
    best = oracle.best_reward
    if best is None:
        best = max(float(each.curves.max()) for each in results)
        best = best if np.isfinite(best) else 0.0  # no agent ever had an answer
    judged = []
    for each in results:
        has_answer, known = np.isfinite(each.curves[:, -1]), oracle.ranks(each.curves[:, -1])
        ranks = None if known is None else np.where(has_answer, known, np.inf)
        tests = np.where(has_answer, oracle.test_metrics(each.answers), np.nan)
        judged.append(replace(each, best_reward=best, ranks=ranks, test_metrics=tests))
    return judged


def compare_agents(
    oracle: Oracle,
    agents: Sequence[str],
    seeds: Sequence[int] = range(50),
    evaluations: int = 120,
    masks_per_turn: int = 3,
    agent_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[AgentResult]:
    """Compare agents.

    Args:
        oracle: Returns rewards.
        agents: Names of agents and of algorithms of Stable-Baselines3; see `run_agent`.
        seeds: Each agent searches once per seed, and draws as in `das_gym.agents.search` with that seed.
        evaluations: Evaluations per search.
        masks_per_turn: Masks between two answers.
        agent_kwargs: Hyperparameters by agent; `SEARCH_DEFAULTS` are filled in.

    Returns:
        One result per agent, in the order of `agents`.

    Example:
        >>> from das_gym.agents import compare_agents, make_oracle
        >>> oracle = make_oracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4})
        >>> bayes, random = compare_agents(oracle, ["bayes", "random"], seeds=range(3), evaluations=60)
        >>> bayes.mean_regret() < random.mean_regret()
        True
    """
    settings = {agent: (agent_kwargs or {}).get(agent, {}) for agent in agents}
    for agent in agents:
        check_agent(oracle, agent, settings[agent], masks_per_turn)
    return judge(oracle, [run_agent(oracle, agent, seeds, evaluations, masks_per_turn, settings[agent]) for agent in agents])


def run_agent(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> AgentResult:
    """Run an agent once per seed; an agent that does not depend on the seed runs once. See `compare_agents`."""
    different = seeds if depends_on_seed(agent) else seeds[:1]
    trials = [run_trial(oracle, agent, seed, evaluations, masks_per_turn, agent_kwargs) for seed in different]
    return AgentResult.of(trials if len(trials) == len(seeds) else trials * len(seeds), evaluations)


def depends_on_seed(agent: str) -> bool:
    """Return True if an agent draws random numbers: a rule answers alike with every seed."""
    return is_algorithm(agent) or agent_class(agent).draws


def run_trial(
    oracle: Oracle, agent: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> SearchTrial:
    """Search once with an agent or an algorithm of Stable-Baselines3. See `compare_agents`."""
    run_once = _train_once if is_algorithm(agent) else _search_once
    return run_once(oracle, agent, seed, evaluations, masks_per_turn, agent_kwargs)


def check_agent(oracle: Oracle, agent: str, agent_kwargs: Mapping[str, Any], masks_per_turn: int) -> None:
    """Make an agent and discard it, to find a wrong name or hyperparameter before any agent searches."""
    if is_algorithm(agent):
        _train_once(oracle, agent, 0, 1, masks_per_turn, agent_kwargs)
    else:
        _make(oracle, agent, 0, agent_kwargs)


def _make(oracle: Oracle, name: str, seed: int, agent_kwargs: Mapping[str, Any]) -> Agent:
    return make_search_agent(name, oracle.space, seed, agent_kwargs, oracle.statistics, oracle.blocks)


def _search_once(
    oracle: Oracle, name: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> SearchTrial:
    agent = _make(oracle, name, seed, agent_kwargs)
    scored = _Scored(oracle, evaluations, masks_needed(agent.statistics_read, agent.n_layers))
    turns, seconds = 0, 0.0
    while scored.used < evaluations:
        started = time.process_time()
        masks = ask(agent, name, min(masks_per_turn, evaluations - scored.used))
        seconds += time.process_time() - started
        if len(masks) == 0:
            break
        rewards, started = scored.score(masks), time.process_time()
        agent.tell(masks, rewards)
        seconds += time.process_time() - started
        turns += 1
    if scored.used < evaluations:  # the agent is done, and may answer with a mask that it did not ask for
        scored.score_answer(answer(agent, name))
    return scored.trial(name, seed, 1e3 * seconds / max(turns, 1))


def _train_once(
    oracle: Oracle, name: str, seed: int, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> SearchTrial:
    """Search with an algorithm of Stable-Baselines3 on `masks_per_turn` parallel environments.

    At the end its answer is the best scored mask or the policy's own, whichever is better. Its time is that of the whole
    training, divided by turns.
    """
    started = time.process_time()
    config = SearchConfig(
        **oracle.space.budget.settings,
        env_id=oracle.env_id,
        env_kwargs=dict(oracle.env_kwargs),
        agent=name,
        agent_kwargs=dict(agent_kwargs),
        seed=seed,
        evaluations=evaluations,
        masks_per_turn=masks_per_turn,
    )
    result = search(config)
    milliseconds = 1e3 * (time.process_time() - started) / max(len(result.history), 1)
    scored = _Scored(oracle, evaluations, masks_needed(oracle.statistics, oracle.space.n_layers))
    for turn in result.history:
        scored.score(np.array(turn.masks, dtype=bool))
    trial, final = scored.trial(name, seed, milliseconds), np.array(result.mask, dtype=bool)
    if oracle.space.contains(final[None])[0]:  # a policy that never satisfied the budget has no answer
        trial = replace(trial, improvements=(*trial.improvements, (evaluations, float(oracle.rewards(final[None])[0]))))
    return replace(trial, answer=tuple(result.mask))


class _Scored:
    """The masks that an agent had scored, and the best of them within the budget.

    Args:
        used: How many masks were scored for layer statistics, which come first.

    Attributes:
        answer: (n_layers,) the best mask within the budget; nothing is skipped while there is none.
    """

    def __init__(self, oracle: Oracle, evaluations: int, used: int) -> None:
        self.oracle = oracle
        self.evaluations = evaluations
        self.used = used
        self.answer = np.zeros(oracle.space.n_layers, dtype=bool)
        self.improvements: list[tuple[int, float]] = []
        self._known: set[bytes] = set()

    def score(self, masks: Masks) -> Floats:
        """Return the (m,) rewards of masks, within the budget or not."""
        rewards = self.oracle.rewards(masks)
        for mask, reward, is_allowed in zip(masks, rewards.tolist(), self.oracle.space.contains(masks), strict=True):
            self.used += 1
            self._known.add(mask.tobytes())
            if is_allowed and (not self.improvements or reward > self.improvements[-1][1]):
                self.answer = mask.copy()
                self.improvements.append((self.used, reward))
        return rewards

    def score_answer(self, mask: Masks) -> None:
        """Score an agent's answer, which takes one evaluation unless it was scored before."""
        if mask.tobytes() not in self._known:
            self.score(mask[None])

    def trial(self, agent: str, seed: int, milliseconds: float) -> SearchTrial:
        """Return the search so far; masks that were scored after the last evaluation do not count for its curve."""
        counted = tuple(each for each in self.improvements if each[0] <= self.evaluations)
        return SearchTrial(agent, seed, tuple(self.answer.astype(int).tolist()), counted, self.used, milliseconds)
