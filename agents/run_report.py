"""The report of a search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.compare.oracle import ground_truth_of
from das_gym.agents.searching.environment import is_tabular, make_scored
from das_gym.agents.searching.picture import architecture_of, progress_of
from das_gym.agents.searching.record import RECORD, SearchResult

from das_gym.commandline import format_command
from das_gym.config import settings_dict
from das_gym.drawing.command import rerun_command
from das_gym.drawing.report import CostChart, Heat, RunReport
from das_gym.drawing.table import Table
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.tables.table import SPLITS
from das_gym.trust import trusted_settings


def search_report(folder: Path) -> RunReport:
    """Return the report of a finished search from the folder of its run."""
    from das_gym.agents.search_experiment import SearchSettings

    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"no search ended in {folder}. `{format_command('agents', f'resume={folder.name}')}` resumes a search."
        )
    result = SearchResult.load(folder)
    on_table = is_tabular(result.env_id)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs if on_table else {}}
    trusted_settings(folder / RECORD, result.plugins, recorded)
    env = make_scored(result.env_id, {}, result.env_kwargs) if on_table else None
    probabilities = [turn.skip_probabilities for turn in result.history if turn.skip_probabilities is not None]
    defaults = {**settings_dict(SearchSettings()), "env_id": None, "agent": None, "seed": None}  # these are always shown
    return RunReport(
        name=f"run {folder.name}",
        title=f"{result.agent} on {result.env_id}, seed {result.seed}",
        facts=_facts(result),
        architecture=architecture_of(result, env),
        mask=result.mask,
        commands=[rerun_command(folder, "agents", defaults)],
        progress=progress_of(result, env),
        heat=Heat.of(probabilities),
        cost=_cost(result, env),
        statistics=_statistics(result, env),
        table=None if env is None else _table(result, env),
        versions=result.versions,
    )


def _facts(result: SearchResult) -> dict[str, str]:
    def number(value: float | None, digits: int = 4) -> str:
        return "not finite" if value is None else f"{value:.{digits}f}"

    budget = {name: result.env_kwargs.get(name) for name in BUDGET_SETTINGS}
    facts = {
        "agent": result.agent,
        "environment": result.env_id,
        "budget": ", ".join(f"{name}={value}" for name, value in budget.items() if value is not None) or "none",
        "skips": ", ".join(result.skipped_layers) or "nothing",
        "reward": number(result.reward),
        "loss, nats": number(result.loss),
        "metric, %": number(None if result.metric is None else 100 * result.metric, 2),
        "MACs saved, %": f"{100 * result.macs_saved:.1f}",
        "masks scored": f"{result.evaluations:,}",
    }
    truth = ground_truth_of(result.env_id, result.env_kwargs, result.mask)
    if truth is not None:
        facts |= {"rank of the answer": f"{truth.rank:,} of {truth.masks:,}", "regret of the answer": f"{truth.regret:.4f}"}
    return facts


def _cost(result: SearchResult, env: Any) -> CostChart:
    rows = [row for turn in result.history if turn.examples_share == 1.0 for row in turn.rows]
    tried = {(row["macs_saved"], row["loss"]) for row in rows if row["loss"] is not None and math.isfinite(row["loss"])}
    answer = None if result.loss is None else (result.macs_saved, result.loss)
    if env is None:
        return CostChart.of(sorted(tried), answer)
    return CostChart.of(sorted(tried), answer, env.table, env.scorer.split)


def _statistics(result: SearchResult, env: Any) -> dict[str, list[float]] | None:
    if result.statistics or env is None:
        return result.statistics or None
    values = env.scorer.observation().reshape(env.n_layers, -1).astype(float)
    return {each.name: values[:, column].tolist() for column, each in enumerate(env.scorer.statistics)}


def _table(result: SearchResult, env: Any) -> Table:
    """Return the full model, the answer and the best mask of all on both splits of the table."""
    table, scorer = env.table, env.scorer
    masks = {
        "full model": np.zeros(table.n_layers, dtype=bool),
        "the answer": np.array(result.mask, dtype=bool),
        "best mask of all": table.best(scorer.objective, scorer.split),
    }
    scores: list[dict[str, Any]] = [table.describe(mask) for mask in masks.values()]
    metric = table.meta.metric_name.replace("_", " ")
    rows = []
    for split in SPLITS:
        rows.append((f"{metric} on the {split} split, %", *(f"{100 * s[f'{split}_metric']:.2f}" for s in scores)))
        rows.append((f"loss on the {split} split, nats", *(f"{s[f'{split}_loss']:.4f}" for s in scores)))
    rows.append(("MACs of one example, M", *(f"{s['macs'] / 1e6:.2f}" for s in scores)))
    rows.append(("MACs saved, %", *(f"{100 * s['macs_saved']:.1f}" for s in scores)))
    return Table(("", *masks), tuple(rows), "Before and after")
