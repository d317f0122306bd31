"""A picture of what was logged while a run went on: one panel a number, over steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from das_gym.drawing.picture import CURVE, GREY, INK, MARGIN, PAPER, SMALL, TEXT, TITLE, WIDTH, font
from das_gym.files import replacing

PANEL = 170
"""Height of a panel, pixels, with its name and its axis."""


def draw_curves(
    path: str | os.PathLike[str], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str
) -> None:
    """Write the picture as PNG.

    Args:
        path: Where to.
        curves: Steps and values by name; values that are not finite are left out.
        title: In one line.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, 2 * MARGIN + 30 + PANEL * len(curves)), PAPER)
    canvas = ImageDraw.Draw(image)
    canvas.text((MARGIN, MARGIN - 6), title, INK, font(TITLE))
    for number, (name, (steps, values)) in enumerate(curves.items()):
        points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        _draw_panel(canvas, name, points, MARGIN + 30 + PANEL * number)
    with replacing(path) as part:
        image.save(part, "PNG")


def _draw_panel(canvas: Any, name: str, points: Sequence[tuple[float, float]], top: float) -> None:
    left, right, low_y, high_y = MARGIN + 80, WIDTH - MARGIN, top + PANEL - 40, top + 34
    canvas.text((MARGIN, top), name, INK, font(TEXT))
    canvas.line((left, high_y, left, low_y, right, low_y), GREY, 1)
    if not points:
        return
    (first, last), values = (points[0][0], points[-1][0]), [value for _, value in points]
    low, high = min(values), max(values)
    for value, y in {high: high_y, low: low_y if high > low else high_y}.items():
        canvas.text((left - 8, y), f"{value:.4g}", GREY, font(SMALL), anchor="rm")
    canvas.text((left, low_y + 4), f"{first:g}", GREY, font(SMALL), anchor="la")
    canvas.text((right, low_y + 4), f"step {last:g}", GREY, font(SMALL), anchor="ra")
    places = [
        (
            left + (right - left) * (step - first) / ((last - first) or 1),
            high_y + (low_y - high_y) * (high - value) / ((high - low) or 1),
        )
        for step, value in points
    ]
    if len(places) > 1:
        canvas.line(places, CURVE, 2)
    x, y = places[-1]
    canvas.ellipse((x - 4, y - 4, x + 4, y + 4), CURVE)
    canvas.text((x, y - 8), f"{values[-1]:.4g}", CURVE, font(SMALL), anchor="rd")
