"""Compare agents with the ground truth: many seeds, equal budgets, search on the reward split, report on the test split.

    python -m agents compare with meter_vqa                          every agent, 50 seeds, 120 of 495 masks of k = 4
    python -m agents compare with vilt_retrieval macs_saved=0.12          at least 12 % of the MACs saved
    python -m agents compare with meter_vqa 'agents=["bayes", "random", "my_module:MyAgent"]' seeds=100
    python -m agents compare with meter_vqa 'agents=["bayes", "ppo"]' seeds=5   Stable-Baselines3's are slower
    python -m agents compare with meter_vqa agent_kwargs.bandit.learning_rate=5
    python -m agents compare with meter_vqa env_kwargs.table=mine.npz      a custom table (python -m agents table)
    python -m agents compare with meter_vqa live=True seeds=5        on the model; regret to the best mask of any agent

    python -m agents compare with resume=3                           continue run 3, which was stopped

A run is kept in runs/<id>/: every search in compare.json, the table in compare.md, the quartiles of every curve in
compare.png.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from das_gym.agents.comparing.comparison import (
    AgentComparison,
    AgentResult,
    SearchTrial,
    check_agent,
    depends_on_seed,
    judge,
    quantile,
    run_trial,
)
from das_gym.agents.comparing.oracle import Oracle, make_oracle
from das_gym.agents.comparing.runner import Comparison, grid_cells
from das_gym.agents.search_experiment import search_phases
from das_gym.agents.searching.loop import check_search
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import CompareSettings

from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, run_folder
from das_gym.drawing.charts import new_figure, save_figure
from das_gym.registration import is_tabular

FIGURE = "compare.png"
EXPLANATION = (
    "line: median over seeds; band between thin lines: quartiles. regret: reward of the best mask minus that of the mask\n"
    "the agent would answer with after this number of evaluations."
)


def phases(settings: CompareSettings, oracle: Oracle) -> Iterator[Phase]:
    """Yield the phases of a comparison: on a table the searches of each agent, else the masks that all of them score."""
    counts = {agent: settings.seeds if depends_on_seed(agent) else 1 for agent in settings.agents}
    config = settings.search(settings.agents[0])
    if not is_tabular(config.env_id):
        scorer = open_scorer(config.env_id, config.mask_kwargs)
        yield from search_phases(scorer, replace(config, evaluations=config.evaluations * sum(counts.values())))
        return

    def run_search(agent: str, count: int) -> None:
        del count  # one search stands for all
        run_trial(oracle, settings.search(agent))

    for agent, count in counts.items():
        yield Phase(agent, count, partial(run_search, agent))


def run_comparison(settings: CompareSettings, run: Run) -> None:
    """Compare agents and print the table; write record, table and figure into the run's folder."""
    config = settings.search(settings.agents[0])
    oracle = make_oracle(config.env_id, config.budget, config.all_env_kwargs)
    for agent in settings.agents:  # the settings of the last one, too, before the first one searches
        check_search(settings.search(agent))
        check_agent(oracle, settings.search(agent))
    if settings.estimate:
        print_estimate(phases(settings, oracle))
        return
    space = oracle.space
    folder = run_folder(run)
    about = {
        "env_id": oracle.env_id,
        "budget": space.budget.as_dict(),
        "masks": space.size,
        "best_reward": oracle.best_reward,
    }
    comparison = Comparison(folder, SearchTrial, settings, about)

    def search(variant: str, seed: int) -> SearchTrial:
        known = None if depends_on_seed(variant) else comparison.find(variant=variant)
        if known is not None:
            return replace(known, seed=seed)
        return run_trial(oracle, replace(settings.search(variant), seed=seed))

    cells = grid_cells(settings.agents, range(settings.seed, settings.seed + settings.seeds))
    trials = comparison.run(cells, len(cells), search)
    searches = [[trial for trial in trials if trial.variant == agent] for agent in settings.agents]
    results = judge(oracle, [AgentResult.from_trials(each, settings.evaluations) for each in searches])
    found = AgentComparison.from_results(oracle, results)
    comparison.finish(run, found.table())
    if folder is not None:
        plot_comparison(folder / FIGURE, results, found.title)
        run.add_artifact(folder / FIGURE)
        print(f"figure: {folder / FIGURE}")


def plot_comparison(path: str | os.PathLike[str], results: Sequence[AgentResult], title: str = "") -> None:
    """Plot regret against evaluations as a PNG: median and quartiles of each agent."""
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    for index, result in enumerate(results):
        quartiles = quantile(result.regret, (25, 50, 75))
        low, median, high = np.where(np.isfinite(quartiles), quartiles, np.nan)  # NaN is not drawn
        evaluations = np.arange(1, len(median) + 1)
        colour = f"C{index % 10}"  # ten colours times three styles
        style = ("-", "--", ":")[index % 3]
        axes.plot(evaluations, median, label=result.agent, color=colour, linewidth=2.0, linestyle=style)
        axes.fill_between(evaluations, low, high, facecolor=(colour, 0.07), edgecolor=(colour, 0.6), linestyle=style)
    every = np.concatenate([result.regret.ravel() for result in results])
    positive = every[(every > 0) & np.isfinite(every)]
    # A regret of 0, the aim, has no place on a logarithmic axis: below the smallest other value the axis is linear.
    axes.set_yscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0, linscale=0.3)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("regret of the answer (reward split)")
    figure.legend(handles=axes.get_lines(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.supxlabel(EXPLANATION, fontsize=8, color="0.35")
    save_figure(figure, path)
