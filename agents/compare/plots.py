"""Plots of a search, of a front and of a comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from das_gym.agents.compare.results import QUARTILES, AgentResult, quantile

from das_gym.drawing.charts import new_figure, save_figure
from das_gym.problem.budget import Floats, Masks

if TYPE_CHECKING:
    from das_gym.agents.pareto.record import FrontResult

_GREY = "0.7"
STYLES = ("-", "--", ":")
"""Line styles. Ten colours times three styles are distinguishable."""

EXPLANATION = (
    "line: median over seeds; band between thin lines: quartiles. regret: reward of the best mask minus that of the mask "
    "the agent would answer with after this number of evaluations."
)


def plot_skip_probabilities(
    path: str | os.PathLike[str], probabilities: Floats, layer_names: Sequence[str], mask: Masks, title: str = ""
) -> None:
    """Plot (turns, n_layers) skip probabilities over the turns as a PNG; the layers of the answer are coloured."""
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    turns = np.arange(1, len(probabilities) + 1)
    colours = {int(layer): f"C{i}" for i, layer in enumerate(np.flatnonzero(mask))}
    for layer in sorted(range(len(layer_names)), key=lambda layer: layer in colours):  # the answer on top
        width = 2.0 if layer in colours else 1.0
        axes.plot(turns, probabilities[:, layer], color=colours.get(layer, _GREY), linewidth=width)
    heights = _without_overlap(probabilities[-1], *axes.get_ylim())
    for layer, name in enumerate(layer_names):
        place, colour = (1.01, heights[layer]), colours.get(layer, "0.4")
        axes.annotate(name, place, xycoords=("axes fraction", "data"), color=colour, va="center", fontsize=8)
    axes.set_xlabel("turn (the masks of one ask)")
    axes.set_ylabel("skip probability; coloured: the answer")
    axes.set_xlim(1, max(2, len(turns)))
    axes.set_title(title)
    save_figure(figure, path)


def _without_overlap(heights: Floats, low: float, high: float) -> Floats:
    """Move (n,) label heights within `low`..`high` so that no two labels overlap."""
    gap = (high - low) * min(0.045, 1.0 / len(heights))
    steps = np.arange(len(heights)) * gap
    order = np.argsort(heights, kind="stable")
    raised = np.maximum.accumulate(np.maximum(heights[order] - steps, low)) + steps
    placed = np.empty_like(heights)
    placed[order] = np.minimum(raised, high - steps[::-1])
    return placed


def plot_comparison(path: str | os.PathLike[str], results: Sequence[AgentResult], title: str = "") -> None:
    """Plot regret and, if known, rank against evaluations as a PNG: median and quartiles of each agent."""
    panels = {"regret": "regret of the answer (reward split)", "ranks": "rank of the answer, 1 = best"}
    if results[0].ranks is None:
        del panels["ranks"]
    figure = new_figure(6.0 * len(panels) + 1.5, 5.0)
    for axes, (panel, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, result in enumerate(results):
            values = getattr(result, panel)
            low, median, high = (_finite(quantile(values, percent)) for percent in QUARTILES)
            evaluations = np.arange(1, values.shape[1] + 1)
            colour, style = f"C{index % 10}", STYLES[index % len(STYLES)]
            axes.plot(evaluations, median, label=result.agent, color=colour, linewidth=2.0, linestyle=style)
            axes.fill_between(evaluations, low, high, facecolor=(colour, 0.07), edgecolor=(colour, 0.6), linestyle=style)
        every = np.concatenate([getattr(result, panel).ravel() for result in results])
        positive = every[(every > 0) & np.isfinite(every)]
        if panel == "regret":
            axes.set_yscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0, linscale=0.3)
            axes.set_ylim(bottom=0.0)
        elif len(positive):  # matplotlib warns about a logarithmic axis without data
            axes.set_yscale("log")
        axes.set_xlabel("evaluations")
        axes.set_ylabel(label)
    figure.legend(handles=axes.get_lines(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.supxlabel(EXPLANATION, fontsize=8, color="0.35")
    save_figure(figure, path)


def _finite(values: Floats) -> Floats:
    """Return values with NaN, which is not drawn, where they are infinite."""
    return np.where(np.isfinite(values), values, np.nan)


def plot_front(path: str | os.PathLike[str], result: FrontResult, title: str = "") -> None:
    """Plot loss against the fraction of the cost saved as a PNG: all scored masks, the numbered front, and baselines."""
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    front, searched = result.front, result.searched
    x, losses = 100 * front.saved, _finite(searched.losses)
    axes.scatter(100 * searched.saved, losses, s=8, color=_GREY, label="scored", zorder=1)
    for index, (name, scored) in enumerate(result.baselines.items(), start=1):
        colour, marker = f"C{index}", "v^<>DP*X"[index % 8]
        axes.scatter(100 * scored.saved, _finite(scored.losses), s=30, color=colour, marker=marker, label=name, zorder=2)
    axes.step(x, front.losses, where="pre", color="C0", linewidth=2.0, zorder=3)
    axes.scatter(x, front.losses, s=22, color="C0", label="front, numbered", zorder=4)
    axes.scatter(100 * searched.saved[:1], losses[:1], s=90, color="black", marker="s", label="full model", zorder=3)
    if np.nanmin(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{result.cost} saved, %. Front: no other mask is both cheaper and better")
    axes.set_ylabel("loss (reward split), nats")
    axes.legend(frameon=False)
    axes.set_title(title)
    figure.draw_without_rendering()  # so that the transformation to pixels is known
    points = axes.transData.transform(np.column_stack([x, front.losses]))
    numbered: list[int] = []  # points at least 20 pt apart, so that their numbers do not overlap
    for number, point in enumerate(points):
        if all(np.hypot(*(point - points[other])) >= 20 * figure.dpi / 72 for other in numbered):
            numbered.append(number)
            place = (x[number], front.losses[number])
            axes.annotate(str(number), place, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)
    save_figure(figure, path)
