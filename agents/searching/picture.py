"""Summarize a finished search: facts in words, its units, and the best reward over evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.compare.oracle import ground_truth_of
from das_gym.agents.searching.record import SearchResult

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import Scene, draw
from das_gym.drawing.report import Progress
from das_gym.files import replacing
from das_gym.problem.budget import keeps_budget
from das_gym.problem.mask_cost import BUDGET_SETTINGS, SAVED, given_costs


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
    truth = ground_truth_of(result.env_id, result.env_kwargs, result.mask)
    if truth is not None:
        facts |= {"rank of the answer": f"{truth.rank:,} of {truth.masks:,}", "regret of the answer": f"{truth.regret:.4f}"}
    return facts


def draw_search(path: Path, result: SearchResult) -> None:
    """Write a PNG of the answer on the architecture, of the best reward over evaluations, and of some facts."""
    from PIL import Image

    progress = progress_of(result)
    best = [] if progress is None else progress.best
    rises = []
    for at, reward in enumerate(best, start=1):
        if reward is not None and (at == 1 or reward != best[at - 2]):
            rises.append((at, reward))
    facts = [f"{name}: {value}" for name, value in search_facts(result).items()][2:8]
    title = f"{result.agent}: {result.n_skipped} of {len(result.mask)} layers skipped, {result.env_id}"
    scene = Scene(architecture_of(result), np.array(result.mask, bool), title, facts, rises, len(best))
    with replacing(path) as part:
        Image.fromarray(draw(scene)).save(part, "PNG")


def architecture_of(result: SearchResult, tabular: Any = None) -> Architecture:
    """Return the searched units: from the record, the table's environment, or the layer names alone."""
    if result.units:
        return Architecture(result.units)
    return Architecture.of(result.layer_names) if tabular is None else tabular.scorer.architecture()


def progress_of(result: SearchResult) -> Progress | None:
    """Return reward and best reward after every scored mask; None without turns."""
    rewards: list[float | None] = []
    best: list[float | None] = []
    so_far: float | None = None
    for turn in result.history:
        for row in turn.rows:
            reward = row["reward"]
            allowed = turn.examples_share == 1.0 and keeps_budget(result.env_kwargs, row["mask"], row["macs_saved"])
            if reward is not None and allowed:
                so_far = reward if so_far is None else max(so_far, reward)
            rewards.append(reward)
            best.append(so_far)
    return Progress(rewards, best) if rewards else None
