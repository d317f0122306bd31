"""Plots of a front and of a comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from das_gym.agents.compare.results import QUARTILES, AgentResult, quantile

from das_gym.drawing.charts import new_figure, save_figure
from das_gym.problem.budget import Floats

if TYPE_CHECKING:
    from das_gym.agents.pareto.record import FrontResult

_GREY = "0.7"
STYLES = ("-", "--", ":")
"""Line styles. Ten colours times three styles are distinguishable."""

EXPLANATION = (
    "line: median over seeds; band between thin lines: quartiles. regret: reward of the best mask minus that of the mask\n"
    "the agent would answer with after this number of evaluations."
)

MAX_NUMBERS = 15
"""Points of a front that are numbered: more numbers overlap."""


def plot_comparison(path: str | os.PathLike[str], results: Sequence[AgentResult], title: str = "") -> None:
    """Plot regret against evaluations as a PNG: median and quartiles of each agent."""
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    for index, result in enumerate(results):
        low, median, high = (_finite(quantile(result.regret, percent)) for percent in QUARTILES)
        evaluations = np.arange(1, len(median) + 1)
        colour, style = f"C{index % 10}", STYLES[index % len(STYLES)]
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
    for number in range(0, len(x), -(-len(x) // MAX_NUMBERS)):
        place = (x[number], front.losses[number])
        axes.annotate(str(number), place, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)
    save_figure(figure, path)
