"""The report of a search."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.compare.ground_truth import ground_truth_of
from das_gym.agents.compare.oracle import is_tabular, make_scored
from das_gym.agents.pareto.record import RECORD as FRONT
from das_gym.agents.searching.picture import architecture_of, progress_of
from das_gym.agents.searching.record import RECORD, SearchResult

from das_gym.commandline import typed
from das_gym.drawing.command import same_again
from das_gym.drawing.report import Comparison, CostChart, Heat, RunReport
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.tables.table import SPLITS
from das_gym.trust import trusted_settings


def search_report(folder: Path) -> RunReport:
    """What a finished search tells.

    Args:
        folder: Of its run.

    Raises:
        FileNotFoundError: no search ended there.
        ValueError: its record cannot be read, or its table is not the one that it was searched on; or it names modules that
            are not imported yet.
    """
    if (folder / FRONT).is_file():
        raise FileNotFoundError(f"{folder} holds a front, which front.png draws and {FRONT} holds: reports are of searches")
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"no search ended in {folder}: `{typed('adapt report')} {folder.name}` tells what a run of adapt came to, and "
            f"`{typed('agents', f'resume={folder.name}')}` goes on with a search that was stopped"
        )
    result = SearchResult.load(folder)
    tells = is_tabular(result.env_id)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs if tells else {}}
    trusted_settings(folder / RECORD, result.use, recorded)
    tabular = make_scored(result.env_id, {}, result.env_kwargs) if tells else None
    probabilities = [turn.skip_probabilities for turn in result.history if turn.skip_probabilities is not None]
    return RunReport(
        name=f"run {folder.name}",
        title=f"{result.agent} on {result.env_id}, seed {result.seed}",
        facts=_facts(result),
        architecture=architecture_of(result, tabular),
        mask=result.mask,
        commands=[_command(folder, result)],
        progress=progress_of(result, tabular),
        heat=Heat.of(probabilities),
        cost=_cost(result, tabular),
        statistics=_statistics(result, tabular),
        comparison=None if tabular is None else _comparison(result, tabular),
        versions=result.versions,
    )


def _facts(result: SearchResult) -> dict[str, str]:
    truth = ground_truth_of(result.env_id, result.env_kwargs, result.mask)
    known = (
        {}
        if truth is None
        else {"rank of the answer": f"{truth.rank:,} of {truth.masks:,}", "regret of the answer": f"{truth.regret:.4f}"}
    )
    budget = {name: result.env_kwargs.get(name) for name in BUDGET_SETTINGS}
    words = ", ".join(f"{name}={value}" for name, value in budget.items() if value is not None)
    return {
        "agent": result.agent,
        "environment": result.env_id,
        "budget": words or "none",
        "skips": ", ".join(result.skipped_layers) or "nothing",
        "reward": _shown(result.reward),
        "loss, nats": _shown(result.loss),
        "metric, %": _shown(None if result.metric is None else 100 * result.metric, 2),
        "MACs saved, %": f"{100 * result.macs_saved:.1f}",
        "masks scored": f"{result.evaluations:,}",
        **known,
    }


def _shown(value: float | None, digits: int = 4) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _command(folder: Path, result: SearchResult) -> str:
    from das_gym.agents.search_experiment import SearchSettings

    defaults = {**asdict(SearchSettings()), "env_id": None, "agent": None, "seed": None}  # which are always told
    if (folder / "config.json").is_file():
        return same_again(folder, "agents", defaults)
    names = ("env_id", "agent", "agent_kwargs", "seed", "masks_per_turn")
    budget = {name: result.env_kwargs[name] for name in BUDGET_SETTINGS if result.env_kwargs.get(name) is not None}
    others = {name: value for name, value in result.env_kwargs.items() if name not in BUDGET_SETTINGS}
    given = {name: getattr(result, name) for name in names} | {"evaluations": result.masks_asked}
    return same_again(folder, "agents", defaults, **given, **budget, env_kwargs=others or None)


def _cost(result: SearchResult, tabular: Any) -> CostChart:
    rows = [turn.row(i) for turn in result.history if turn.examples_share == 1.0 for i in range(len(turn.masks))]
    tried = [(row["macs_saved"], row["loss"]) for row in rows if row["loss"] is not None and math.isfinite(row["loss"])]
    landed = None if result.loss is None else (result.macs_saved, result.loss)
    if tabular is None:
        return CostChart.of(sorted(set(tried)), landed)
    return CostChart.of(sorted(set(tried)), landed, tabular.table, tabular.scorer.split)


def _statistics(result: SearchResult, tabular: Any) -> dict[str, list[float]] | None:
    if result.statistics or tabular is None:
        return result.statistics or None
    values = tabular.scorer.observation().reshape(tabular.n_layers, -1).astype(float)
    return {each.name: values[:, column].tolist() for column, each in enumerate(tabular.scorer.statistics)}


def _comparison(result: SearchResult, tabular: Any) -> Comparison:
    """The full model beside the answer, and the best mask of all, on both splits of the table."""
    table, scorer = tabular.table, tabular.scorer
    masks = {
        "full model": np.zeros(table.n_layers, dtype=bool),
        "the answer": np.array(result.mask, dtype=bool),
        "best mask of all": table.best(scorer.objective, scorer.split),
    }
    told: list[dict[str, Any]] = [table.describe(mask) for mask in masks.values()]
    metric = table.meta.metric_name.replace("_", " ")
    rows = [
        *((f"{metric} on the {split} split, %", [f"{100 * t[f'{split}_metric']:.2f}" for t in told]) for split in SPLITS),
        *((f"loss on the {split} split, nats", [f"{t[f'{split}_loss']:.4f}" for t in told]) for split in SPLITS),
        ("MACs of one example, M", [f"{t['macs'] / 1e6:.2f}" for t in told]),
        ("MACs saved, %", [f"{100 * t['macs_saved']:.1f}" for t in told]),
    ]
    return Comparison(list(masks), rows)
