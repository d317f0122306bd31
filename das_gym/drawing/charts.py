"""Plots with matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from das_gym.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, without the upper and right spines of its axes."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)


def draw_curves(
    path: str | os.PathLike[str], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str
) -> None:
    """Plot logged values over steps, one panel a name, as a PNG. Values that are not finite are left out."""
    figure = new_figure(9.0, 0.6 + 2.2 * len(curves))
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(curves), squeeze=False)[:, 0]
    for axes, (name, (steps, values)) in zip(panels, curves.items(), strict=True):
        points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        axes.plot([step for step, _ in points], [value for _, value in points], color="C0")
        for step, value in points[-1:]:
            axes.plot(step, value, "o", color="C0")
            axes.annotate(f"{value:.4g}", (step, value), (-4, 6), textcoords="offset points", ha="right", color="C0")
        axes.set_title(name, fontsize=10, loc="left")
        axes.margins(y=0.15)
    panels[-1].set_xlabel("step")
    save_figure(figure, path)
