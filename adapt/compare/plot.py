"""Plot scores against MACs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from das_gym.adapt.compare.table import Line

from das_gym.drawing.charts import new_figure, save_figure


def plot_scores(path: str | os.PathLike[str], lines: Sequence[Line], metric: str, title: str) -> None:
    """Write a PNG of score against MACs, with bars of one standard deviation over seeds.

    Args:
        path: Where the PNG goes.
        lines: What was compared.
        metric: What the score is.
        title: Of the plot.
    """
    figure = new_figure(9.0, 5.5)
    axes = figure.add_subplot()
    for line in lines:
        colour, marker = ("C0", "o") if line.key.startswith("das_") else ("0.5", "o")
        colour, marker = ("C1", "x") if line.key.startswith("random_") else (colour, marker)
        bars = None if math.isnan(line.spread) else [100 * line.spread]
        axes.errorbar([line.macs / 1e6], [100 * line.score], yerr=bars, color=colour, marker=marker, capsize=3, linestyle="")
        axes.annotate(line.title, (line.macs / 1e6, 100 * line.score), (5, 4), textcoords="offset points", fontsize=8)
    for prefix, colour in (("das_", "C0"), ("random_", "C1")):
        joined = [line for line in lines if line.key.startswith(prefix)]
        axes.plot([line.macs / 1e6 for line in joined], [100 * line.score for line in joined], color=colour, linewidth=0.8)
    axes.set_xlabel("MACs of one example, millions")
    axes.set_ylabel(f"{metric.replace('_', ' ')} on the test split, %")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.15)
    save_figure(figure, path)
