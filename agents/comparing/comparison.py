"""Compare agents: many seeds each, equal budgets, judged by what their answers are worth on the ground truth."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from das_gym.agents.ask_tell.base import AgentLike, agent_class, answer, ask, named_agent
from das_gym.agents.comparing.oracle import Oracle, make_oracle
from das_gym.agents.comparing.runner import format_mean
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.loop import make_config, make_search_agent, run_search
from das_gym.agents.settings import SearchConfig

from das_gym.commands.progress import progress as progress_bar
from das_gym.commands.progress import show_progress
from das_gym.drawing.report import Table
from das_gym.intervals import t_interval
from das_gym.models.random_states import kept_random_states
from das_gym.names import check_distinct, format_count
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.problem import Problem
from das_gym.problem.statistics import masks_needed


@dataclass(frozen=True)
class SearchTrial:
    """One search of an agent, whose name is `variant`.

    Attributes:
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
        answers: (seeds, n_layers) its final answers.
        curves: (seeds, evaluations) reward, on the reward split, of the best mask within the budget among the first 1, 2,
            ... scored masks, -inf while there is none. Masks that a model scores for the statistics that an agent reads
            are evaluations, and come first. An agent that is done has its answer scored, if it was not.
        evaluations: (seeds,) numbers of scored masks.
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
    def from_trials(cls, trials: Sequence[SearchTrial], evaluations: int) -> Self:
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
    def found_best(self) -> npt.NDArray[np.bool_]:
        """(seeds, evaluations): whether the answer earns the best reward exactly."""
        return self.regret == 0

    def evaluations_needed(self) -> Floats:
        """Return (seeds,) the evaluations from which on the answer is as good as the best mask; inf where it is not."""
        missed = ~self.found_best
        last_miss = missed.shape[1] - np.argmax(missed[:, ::-1], axis=1)
        return np.where(missed[:, -1], np.inf, np.where(missed.any(axis=1), last_miss + 1.0, 1.0))

    def mean_regrets(self) -> Floats:
        """Return (seeds,) means over evaluations, from each seed's first answer on; inf where a seed never had one."""
        return np.ma.masked_invalid(self.regret).mean(axis=1).filled(np.inf)

    def mean_regret(self) -> float:
        """Return the mean of `mean_regrets`, in the unit of the reward."""
        return float(self.mean_regrets().mean())


def quantile(values: npt.NDArray[Any], percent: float | Sequence[float]) -> npt.NDArray[Any]:
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
        has_answer = np.isfinite(each.curves[:, -1])
        known = oracle.ranks(each.curves[:, -1])
        ranks = None if known is None else np.where(has_answer, known, np.inf)
        tests = np.where(has_answer, oracle.test_metrics(each.answers), np.nan)
        judged.append(replace(each, best_reward=best, ranks=ranks, test_metrics=tests))
    return judged


@dataclass(frozen=True, eq=False, repr=False)
class AgentComparison(Sequence[AgentResult]):
    """The results of agents on one problem, in the order in which they were asked for."""

    results: tuple[AgentResult, ...]
    title: str

    @classmethod
    def from_results(cls, oracle: Oracle, results: Sequence[AgentResult]) -> Self:
        """Return judged results with a title."""
        space = oracle.space
        budget = space.budget.describe() if space.skip_num is None else f"k = {space.skip_num}"
        masks = "" if space.size is None else f" ({format_count(space.size, 'mask')})"
        return cls(tuple(results), f"{oracle.env_id}, {budget}{masks}, {format_count(len(results[0].answers), 'seed')}")

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def table(self) -> Table:
        """Return the table, the agent with the lowest mean regret first."""
        return results_table(self.results, self.title)

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each agent, the one with the lowest mean regret first.

        Its columns are `agent`, `mean_regret` and `test_metric` with the limits of their 95 % t-intervals over seeds
        (`mean_regret_low`, ...), `found_best` (share of seeds) and `evaluations` (mean).
        """
        import pandas as pd

        rows = []
        for each in sorted(self.results, key=AgentResult.mean_regret):
            row: dict[str, Any] = {"agent": each.agent}
            for name, values in (("mean_regret", each.mean_regrets()), ("test_metric", each.test_metrics)):
                low, high = t_interval(values)
                row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
            row |= {"found_best": float(each.found_best[:, -1].mean()), "evaluations": float(each.evaluations.mean())}
            rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"{self.title}\n\n{self.table().markdown()}"

    def _repr_html_(self) -> str:
        table = self.table()
        rows = (table.columns, *table.rows)
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
        return f"<table><caption>{escape(self.title)}</caption>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def compare(
    problem: Problem | str | Oracle,
    agents: Sequence[AgentLike],
    seeds: int | Sequence[int] = 5,
    *,
    evaluations: int = 120,
    masks_per_turn: int = 3,
    agent_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = True,
    **settings: Any,
) -> AgentComparison:
    """Search with each agent and seed at equal budgets, and return a result for each agent.

    Scores are shared: a mask that several searches ask for is scored once.

    Args:
        problem: A `Problem`, or the id of an environment, as of a table, which knows the best mask; or an oracle.
        agents: Names of agents and of algorithms of Stable-Baselines3, subclasses of `Agent`, or functions that return one.
        seeds: Number of searches of each agent, or their seeds.
        evaluations: Number of masks that each search may score.
        masks_per_turn: Number of masks that are scored together.
        agent_kwargs: Hyperparameters by agent; `SEARCH_DEFAULTS` are filled in.
        progress: Whether to show progress.
        settings: A budget, `reward` and further settings of `SearchConfig`, see `das_gym.agents.search`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An agent or a setting is unknown, or an agent does not support the budget.

    Example:
        >>> from das_gym.agents import compare
        >>> bayes, random = compare("DAS-METER-VQA-Tabular-v0", ["bayes", "random"], seeds=3, evaluations=60, skip_num=4)
        >>> bayes.mean_regret() < random.mean_regret()
        True
    """
    numbers = range(seeds) if isinstance(seeds, int | np.integer) else seeds
    with ExitStack() as stack:
        stack.enter_context(show_progress(progress))
        stack.enter_context(kept_random_states())
        names = [stack.enter_context(named_agent(agent)) for agent in agents]
        check_distinct("agents", names)
        oracle = problem if isinstance(problem, Oracle) else oracle_of(problem, settings)
        chosen = {name: (evaluations, masks_per_turn, (agent_kwargs or {}).get(name, {})) for name in names}
        for name in names:
            check_agent(oracle, search_config(oracle, name, *chosen[name]))
        with progress_bar(len(names), "comparing", unit="agent") as bar:
            found = []
            for name in names:
                found.append(run_agent(oracle, name, numbers, *chosen[name]))
                bar.update()
        return AgentComparison.from_results(oracle, judge(oracle, found))


def oracle_of(problem: Problem | str, settings: Mapping[str, Any]) -> Oracle:
    """Return the oracle of a problem or of an environment with an id; `settings` are those of `das_gym.agents.search`."""
    config = make_config(problem, settings)
    others = {name: value for name, value in config.mask_kwargs.items() if name not in config.budget}
    return make_oracle(config.env_id, config.budget, others, problem if isinstance(problem, Problem) else None)


def search_config(
    oracle: Oracle, agent: str, evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> SearchConfig:
    """Return the settings of a search of an agent on the problem of an oracle, with seed 0. See `compare`."""
    return SearchConfig(
        **oracle.space.budget.settings,
        env_id=oracle.env_id,
        env_kwargs=dict(oracle.env_kwargs),
        agent=agent,
        agent_kwargs=dict(agent_kwargs),
        evaluations=evaluations,
        masks_per_turn=masks_per_turn,
    )


def run_agent(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> AgentResult:
    """Run an agent once per seed; an agent that does not depend on the seed runs once. See `compare`."""
    config = search_config(oracle, agent, evaluations, masks_per_turn, agent_kwargs)
    different = seeds if depends_on_seed(agent) else seeds[:1]
    trials = [run_trial(oracle, replace(config, seed=seed)) for seed in different]
    return AgentResult.from_trials(trials if len(trials) == len(seeds) else trials * len(seeds), evaluations)


def depends_on_seed(agent: str) -> bool:
    """Return True if an agent draws random numbers; a rule returns the same answer for every seed."""
    return is_algorithm(agent) or agent_class(agent).draws


def run_trial(oracle: Oracle, config: SearchConfig) -> SearchTrial:
    """Search once with an agent or an algorithm of Stable-Baselines3, with the rewards of the oracle."""
    return _train_once(oracle, config) if is_algorithm(config.agent) else _search_once(oracle, config)


def check_agent(oracle: Oracle, config: SearchConfig) -> None:
    """Make an agent and discard it, so that a wrong name or hyperparameter is an error before any agent searches."""
    if is_algorithm(config.agent):
        _train_once(oracle, replace(config, evaluations=1))
    else:
        make_search_agent(config, oracle.space, oracle.statistics)


def _search_once(oracle: Oracle, config: SearchConfig) -> SearchTrial:
    name = config.agent
    agent = make_search_agent(config, oracle.space, oracle.statistics)
    needed = masks_needed(agent.statistics_read, agent.n_layers)
    masks = np.zeros((0, agent.n_layers), dtype=bool)
    rewards = np.zeros(0)
    turns = 0
    seconds = 0.0
    while (left := config.evaluations - needed - len(masks)) > 0:
        started = time.process_time()
        asked = ask(agent, name, min(config.masks_per_turn, left))
        seconds += time.process_time() - started
        if len(asked) == 0:  # the agent is done, and may answer with a mask that it did not ask for
            asked = answer(agent, name)[None]
            if not (masks == asked).all(axis=1).any():
                masks = np.concatenate((masks, asked))
                rewards = np.append(rewards, oracle.rewards(asked))
            break
        earned = oracle.rewards(asked)
        started = time.process_time()
        agent.tell(asked, earned)
        seconds += time.process_time() - started
        masks = np.concatenate((masks, asked))
        rewards = np.append(rewards, earned)
        turns += 1
    return _trial_of(oracle, config, masks, rewards, needed, 1e3 * seconds / max(turns, 1))


def _train_once(oracle: Oracle, config: SearchConfig) -> SearchTrial:
    """Search with an algorithm of Stable-Baselines3 on `config.masks_per_turn` parallel environments.

    At the end its answer is the best scored mask or the policy's own, whichever is better. Its time is that of the whole
    training, divided by turns.
    """
    started = time.process_time()
    result = run_search(config, problem=oracle.problem)
    milliseconds = 1e3 * (time.process_time() - started) / max(len(result.history), 1)
    n_layers = oracle.space.n_layers
    needed = masks_needed(oracle.statistics, n_layers)
    masks = np.array([mask for turn in result.history for mask in turn.masks], dtype=bool).reshape(-1, n_layers)
    trial = _trial_of(oracle, config, masks, oracle.rewards(masks), needed, milliseconds)
    final = result.mask[None]
    if oracle.space.contains(final)[0]:  # a policy that never satisfied the budget has no answer
        trial = replace(trial, improvements=(*trial.improvements, (config.evaluations, float(oracle.rewards(final)[0]))))
    return replace(trial, answer=tuple(result.mask.astype(int).tolist()))


def _trial_of(
    oracle: Oracle, config: SearchConfig, masks: Masks, rewards: Floats, needed: int, milliseconds: float
) -> SearchTrial:
    """Return a search that scored (m, n_layers) masks with (m,) rewards, after `needed` masks for layer statistics."""
    allowed = np.where(oracle.space.contains(masks), rewards, -np.inf)
    before = np.maximum.accumulate(np.append(-np.inf, allowed))[:-1]
    better = np.flatnonzero(allowed > before).tolist()
    answer = masks[better[-1]].astype(int).tolist() if better else [0] * oracle.space.n_layers
    found = [(needed + row + 1, float(rewards[row])) for row in better if needed + row < config.evaluations]
    return SearchTrial(config.agent, config.seed, tuple(answer), tuple(found), needed + len(masks), milliseconds)


def results_table(results: Sequence[AgentResult], title: str) -> Table:
    """Return the table, the agent with the lowest mean regret first."""
    evaluations = results[0].regret.shape[1]
    counts = sorted({max(1, round(evaluations * share)) for share in (0.25, 0.5, 1.0)})
    rows = [(each.agent, *table_row(each, counts)) for each in sorted(results, key=AgentResult.mean_regret)]
    note = (
        "regret at n: the best mask's reward less the answer's, after n evaluations; mean regret: over all evaluations from "
        "the first answer on; -: no answer yet, or a number that is not known; "
        "found: share of seeds that found the best mask; needed: evaluations until then. Mean regret and test metric: mean "
        "over seeds ± half of the 95 % interval; all others: medians, whose quartiles the figure has"
    )
    columns = ("mean regret", *(f"regret at {count}" for count in counts), "rank", "found", "needed", "used", "test metric")
    return Table(("agent", *columns), tuple(rows), title, (note,))


def table_row(result: AgentResult, counts: Sequence[int]) -> tuple[str, ...]:
    """Return a row of the table: regrets, rank, found, needed, used, test metric; "-" for missing numbers."""

    def median(values: Any, digits: int = 0) -> str:
        value = float(quantile(values, 50))
        return f"{value:.{digits}f}" if np.isfinite(value) else "-"

    tests = result.test_metrics
    return (
        format_mean(result.mean_regrets(), digits=4),
        *(median(result.regret[:, count - 1], 4) for count in counts),
        "-" if result.ranks is None else median(result.ranks),
        f"{100 * result.found_best[:, -1].mean():.0f} %",
        median(result.evaluations_needed()),
        median(result.evaluations),
        format_mean(tests[np.isfinite(tests)], digits=4),
    )
