"""Pictures of a search, and of a comparison."""

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

_KEPT = "0.7"
STYLES = ("-", "--", ":")
"""Of lines and of the edges of bands: ten colours times three are told apart, in grey too where few are drawn."""

EXPLAINED = (
    "line: median over seeds; band between thin lines: quartiles. regret: reward of the best mask less that of the mask "
    "the agent would answer with after so many evaluations."
)


def plot_skip_probabilities(
    path: str | os.PathLike[str], probabilities: Floats, layer_names: Sequence[str], mask: Masks, title: str = ""
) -> None:
    """A PNG of every layer's skip probability over the turns; the layers of the answer are coloured.

    Args:
        path: Where the PNG goes.
        probabilities: (turns, n_layers) in 0..1.
        layer_names: Names in mask order.
        mask: (n_layers,) bool, the answer, True = skipped.
        title: Title of the picture.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    turns = np.arange(1, len(probabilities) + 1)
    colours = {int(layer): f"C{i}" for i, layer in enumerate(np.flatnonzero(mask))}
    for layer in sorted(range(len(layer_names)), key=lambda layer: layer in colours):  # the answer on top
        colour = colours.get(layer, _KEPT)
        axes.plot(turns, probabilities[:, layer], color=colour, linewidth=2.0 if layer in colours else 1.0)
    heights = _spread(probabilities[-1], *axes.get_ylim())
    for layer, name in enumerate(layer_names):
        place, colour = (1.01, heights[layer]), colours.get(layer, "0.4")
        axes.annotate(name, place, xycoords=("axes fraction", "data"), color=colour, va="center", fontsize=8)
    axes.set_xlabel("turn (the masks that are asked for at once)")
    axes.set_ylabel("skip probability; coloured: the answer")
    axes.set_xlim(1, max(2, len(turns)))
    axes.set_title(title)
    save_figure(figure, path)


def _spread(heights: Floats, low: float, high: float) -> Floats:
    """(n,) heights for n labels within `low` and `high`, near where they belong but not one over another."""
    gap = (high - low) * min(0.045, 1.0 / len(heights))
    steps = np.arange(len(heights)) * gap
    order = np.argsort(heights, kind="stable")
    raised = np.maximum.accumulate(np.maximum(heights[order] - steps, low)) + steps
    placed = np.empty_like(heights)
    placed[order] = np.minimum(raised, high - steps[::-1])
    return placed


def plot_comparison(path: str | os.PathLike[str], results: Sequence[AgentResult], title: str = "") -> None:
    """A PNG of regret and, where it is known, rank against evaluations: median of each agent, and its quartiles as a band.

    Args:
        path: Where the PNG goes.
        results: One an agent.
        title: Title of the picture.
    """
    panels = ["regret"] if results[0].ranks is None else ["regret", "ranks"]
    figure = new_figure(6.0 * len(panels) + 1.5, 5.0)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, result in enumerate(results):
            values = getattr(result, panel)
            low, median, high = (_drawn(quantile(values, percent)) for percent in QUARTILES)
            evaluations = np.arange(1, values.shape[1] + 1)
            colour, style = f"C{index % 10}", STYLES[index % len(STYLES)]
            axes.plot(evaluations, median, label=result.agent, color=colour, linewidth=2.0, linestyle=style)
            axes.fill_between(evaluations, low, high, facecolor=(colour, 0.07), edgecolor=(colour, 0.6), linestyle=style)
        if panel == "regret":
            every = np.concatenate([result.regret.ravel() for result in results])
            positive = every[(every > 0) & np.isfinite(every)]
            axes.set_yscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0, linscale=0.3)
            axes.set_ylim(bottom=0.0)
        elif any(np.isfinite(getattr(result, panel)).any() for result in results):  # nothing has no logarithm
            axes.set_yscale("log")
        axes.set_xlabel("evaluations")
        axes.set_ylabel({"regret": "regret of the answer (reward split)", "ranks": "rank of the answer, 1 = best"}[panel])
    figure.legend(handles=axes.get_lines(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.supxlabel(EXPLAINED, fontsize=8, color="0.35")
    save_figure(figure, path)


def _drawn(values: Floats) -> Floats:
    """Numbers as they are drawn: nothing where there is no answer yet."""
    return np.where(np.isfinite(values), values, np.nan)


def plot_front(path: str | os.PathLike[str], result: FrontResult, title: str = "") -> None:
    """A PNG of loss, on a logarithmic scale, against the share of the cost saved.

    Drawn are every mask scored, the front with its points' numbers, the full model, and the baselines.

    Args:
        path: Where the PNG goes.
        result: The front.
        title: Title of the picture.
    """
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    front, searched = result.front, result.searched
    axes.scatter(100 * searched.saved, _drawn(searched.losses), s=8, color=_KEPT, label="scored", zorder=1)
    for index, (name, scored) in enumerate(result.baselines.items(), start=1):
        marker = "v^<>DP*X"[index % 8]
        axes.scatter(100 * scored.saved, _drawn(scored.losses), s=30, color=f"C{index}", marker=marker, label=name, zorder=2)
    axes.step(100 * front.saved, front.losses, where="pre", color="C0", linewidth=2.0, zorder=3)
    axes.scatter(100 * front.saved, front.losses, s=22, color="C0", label="front, numbered", zorder=4)
    axes.scatter(
        100 * searched.saved[:1], _drawn(searched.losses[:1]), s=90, color="black", marker="s", label="full model", zorder=3
    )
    if np.nanmin(_drawn(searched.losses)) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{result.cost} saved, %. Front: masks of which none is both cheaper and better than another")
    axes.set_ylabel("loss (reward split), nats")
    axes.legend(frameon=False)
    axes.set_title(title)
    figure.draw_without_rendering()  # which settles where points are
    points = axes.transData.transform(np.column_stack([100 * front.saved, front.losses]))
    for number in _apart(points, 20 * figure.dpi / 72):
        place = (100 * front.saved[number], front.losses[number])
        axes.annotate(str(number), place, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)
    save_figure(figure, path)


def _apart(points: Floats, least: float) -> list[int]:
    """Those of (n, 2) points that lie at least so far from each one taken before."""
    taken: list[int] = []
    for number, point in enumerate(points):
        if all(np.hypot(*(point - points[other])) >= least for other in taken):
            taken.append(number)
    return taken
