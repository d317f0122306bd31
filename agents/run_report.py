"""Summaries of a finished search: facts, figure and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from das_gym.agents.searching.record import RECORD, SearchResult
from das_gym.agents.searching.scorer import make_scored
from das_gym.agents.settings import SearchSettings

from das_gym.commands.past_runs import rerun_command, run_settings
from das_gym.commands.settings import settings_dict
from das_gym.commands.trust import trusted_settings
from das_gym.drawing.architecture import Architecture, draw
from das_gym.drawing.report import CostChart, Heat, Progress, RunReport, Table
from das_gym.files import replacing
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, given_costs, keeps_budget
from das_gym.registration import is_tabular

if TYPE_CHECKING:
    from das_gym.tables.table import SubnetTable


def ground_truth(env_id: str, env_kwargs: Mapping[str, Any], mask: Sequence[int]) -> dict[str, str]:
    """Return rank and regret of a mask among all within the budget, by the environment's own reward, in words.

    Empty without a table, and for a mask outside the budget.
    """
    if not is_tabular(env_id):
        return {}
    env = make_scored(env_id, env_kwargs)
    chosen = np.array(mask, dtype=bool)
    if not env.budget.is_feasible(chosen[None])[0]:
        return {}
    rank = env.table.rank(chosen, env.scorer.objective, env.scorer.split)
    regret = env.table.regret(chosen, env.scorer.objective, env.scorer.split)
    count = env.budget.is_feasible(env.table.masks).sum()
    return {"rank of the answer": f"{rank:,} of {count:,}", "regret of the answer": f"{regret:.4f}"}


def search_facts(result: SearchResult) -> dict[str, str]:
    """Return what a search found, by name: for its report, its figure and the printed summary."""
    budget = {name: result.env_kwargs.get(name) for name in BUDGET_SETTINGS}
    facts = {
        "agent": result.agent,
        "environment": result.env_id,
        "budget": ", ".join(f"{name}={value}" for name, value in budget.items() if value is not None) or "none",
        "skips": ", ".join(result.skipped_layers) or "nothing",
        "reward": "not finite" if result.reward is None else f"{result.reward:.4f}",
        "loss, nats": "not finite" if result.loss is None else f"{result.loss:.4f}",
        "metric, %": "not finite" if result.metric is None else f"{100 * result.metric:.2f}",
        "MACs saved, %": f"{100 * result.macs_saved:.1f}",
        "masks scored": f"{result.evaluations:,}",
    }
    for setting, cost in given_costs(result.env_kwargs.get("costs")).items():
        facts[f"{SAVED[setting]} saved, %"] = f"{100 * cost.saved(np.array([result.mask], dtype=bool))[0]:.1f}"
    return facts | ground_truth(result.env_id, result.env_kwargs, result.mask)


def draw_search(path: Path, result: SearchResult, facts: Sequence[str]) -> None:
    """Write a PNG of the answer on the architecture, of the best reward over evaluations, and of some facts."""
    from PIL import Image

    title = f"{result.agent}: {result.n_skipped} of {len(result.mask)} units skipped, {result.env_id}"
    progress = progress_of(result)
    best = [] if progress is None else [reward for reward in progress.best if reward is not None]
    image = draw(architecture_of(result), np.array(result.mask, bool), title, facts, best=best)
    with replacing(path) as part:
        Image.fromarray(image).save(part, "PNG")


def architecture_of(result: SearchResult) -> Architecture:
    """Return the searched units: from the record, or, for an environment of another package, the layer names alone."""
    return Architecture(result.units) if result.units else Architecture.from_names(result.layer_names)


def progress_of(result: SearchResult) -> Progress | None:
    """Return reward and best reward after every scored mask; None without turns."""
    found = Progress([], [])
    so_far: float | None = None
    for turn in result.history:
        for row, share in zip(turn.rows, turn.shares, strict=True):
            reward = row["reward"]
            allowed = share == 1.0 and keeps_budget(result.env_kwargs, row["mask"], row["macs_saved"])
            if reward is not None and allowed:
                so_far = reward if so_far is None else max(so_far, reward)
            found.rewards.append(reward)
            found.best.append(so_far)
    return found if found.rewards else None


def search_report(folder: Path) -> RunReport:
    """Return the report of a finished search from the folder of its run, or of the run that it is a part of."""
    result = SearchResult.load(folder)
    on_table = is_tabular(result.env_id)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs if on_table else {}}
    trusted_settings(folder / RECORD, result.plugins, recorded)
    table = None
    scored: tuple[Any, ...] = ()  # table and split
    if on_table:
        env = make_scored(result.env_id, result.env_kwargs)
        scored = env.table, env.scorer.split
        best = env.table.best(env.scorer.objective, env.scorer.split)
        masks = {"full model": np.zeros_like(best), "the answer": np.array(result.mask, bool), "best mask of all": best}
        table = masks_table(env.table, masks, "Before and after")
    rows = [row for turn in result.history for row in turn.complete_rows if row["loss"] is not None]
    tried = {(row["macs_saved"], row["loss"]) for row in rows}
    answer = None if result.loss is None else (result.macs_saved, result.loss)
    commands = []
    if "env_id" in run_settings(folder):  # otherwise the search is a part of a run of another command
        defaults = {**settings_dict(SearchSettings()), "env_id": None, "agent": None, "seed": None}  # these are always shown
        commands = [rerun_command(folder, "agents", SearchSettings, defaults)]
    return RunReport(
        title=f"{result.agent} on {result.env_id}, seed {result.seed}",
        facts=search_facts(result),
        architecture=architecture_of(result),
        mask=result.mask,
        table=table,
        progress=progress_of(result),
        heat=Heat.from_turns([turn.skip_probabilities for turn in result.history if turn.skip_probabilities is not None]),
        cost=CostChart.from_search(sorted(tried), answer, *scored),
        statistics=dict(result.statistics) or None,
        name=f"run {folder.name}",
        commands=commands,
        versions=result.versions,
    )


def masks_table(table: SubnetTable, masks: Mapping[str, np.ndarray], title: str) -> Table:
    """Return the scores of some masks by name, on both splits of a table."""
    scores: list[dict[str, Any]] = [table.describe(mask) for mask in masks.values()]
    metric = table.meta.metric_name.replace("_", " ")
    rows = []
    for split in table.scores:
        rows.append((f"{metric} on the {split} split, %", *(f"{100 * s[f'{split}_metric']:.2f}" for s in scores)))
        rows.append((f"loss on the {split} split, nats", *(f"{s[f'{split}_loss']:.4f}" for s in scores)))
    rows.append(("MACs saved, %", *(f"{100 * s['macs_saved']:.1f}" for s in scores)))
    return Table(("", *masks), tuple(rows), title)
