"""A picture of an architecture under a mask, and of the search so far: what environments render as `rgb_array`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from das_gym.drawing.architecture import Architecture, Unit

WIDTH = 960
MARGIN = 24
LANE = 44
"""Height of a lane, pixels; its labels and the gap below are in it."""

BOX = 22
STAGES_A_BAND = 24
"""Most stages beside each other; more are drawn below."""

CHART = 150
TEXT, SMALL, TITLE, LEAST_TEXT = 15, 12, 20, 9

INK, GREY, PAPER, KEPT, CURVE = "#1b1b1b", "#595959", "#ffffff", "#0072b2", "#b34700"
"""Each has a contrast of at least 4.5 on paper; blue and orange are told apart by colour-blind people."""

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        architecture: The model's units.
        mask: (n_units,) bool, True = skipped.
        title: In one line.
        facts: Lines in words, up to 6.
        improvements: The search so far: at which evaluation the best reward rose, and to what.
        evaluations: Masks scored so far.
    """

    architecture: Architecture
    mask: np.ndarray
    title: str
    facts: Sequence[str]
    improvements: Points = ()
    evaluations: int = 0


def height_of(architecture: Architecture) -> int:
    """Pixels that a picture of it takes from top to bottom; even, as the sides of films are."""
    bands = sum(len(_lanes_of(architecture, band)) * LANE + 16 for band in _bands(architecture))
    height = 2 * MARGIN + 60 + bands + CHART
    return height + height % 2


def draw(scene: Scene, height: int | None = None) -> np.ndarray:
    """(height, WIDTH, 3) uint8.

    Args:
        scene: What is drawn.
        height: Pixels, at least `height_of` its architecture; None is that, so that the pictures of an episode make a film.
    """
    from PIL import Image, ImageDraw

    bands = _bands(scene.architecture)
    lanes = [_lanes_of(scene.architecture, band) for band in bands]
    image = Image.new("RGB", (WIDTH, height or height_of(scene.architecture)), PAPER)
    canvas = ImageDraw.Draw(image)
    canvas.text((MARGIN, MARGIN - 6), scene.title, INK, font(TITLE))
    _legend(canvas, MARGIN + 26)
    top, indent = MARGIN + 60, _indent(scene.architecture)
    scale = min(_scale(_shares(scene.architecture, band), WIDTH - indent - MARGIN) for band in bands)
    for band, names in zip(bands, lanes, strict=True):
        _draw_band(canvas, scene, band, names, (indent, top), scale)
        top += len(names) * LANE + 16
    _draw_facts(canvas, scene.facts, top)
    _draw_curve(canvas, scene, (WIDTH // 2, top, WIDTH - MARGIN, top + CHART - 8))
    return np.asarray(image)


def _bands(architecture: Architecture) -> list[tuple[tuple[int, ...], ...]]:
    """The stages, in rows that are as even as can be."""
    stages = architecture.stages
    rows = -(-len(stages) // STAGES_A_BAND)
    each = -(-len(stages) // rows)
    return [stages[start : start + each] for start in range(0, len(stages), each)]


def _lanes_of(architecture: Architecture, band: Sequence[Sequence[int]]) -> list[str]:
    there = {architecture.units[i].lane for stage in band for i in stage}
    return [lane for lane in architecture.lanes if lane in there]


def _indent(architecture: Architecture) -> int:
    """Where the boxes begin: right of the lanes' names."""
    return MARGIN + 12 + int(max(font(TEXT).getlength(_clipped(lane)) for lane in architecture.lanes))


def _clipped(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _least(units: Sequence[Unit]) -> float:
    """Width of a column that its labels need."""
    return 10 + max(font(SMALL).getlength(unit.label) for unit in units)


def _shares(architecture: Architecture, band: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Of each column, its width's least and the largest share in it."""
    columns = [[architecture.units[i] for i in stage] for stage in band]
    return [(_least(units), max(1.0 if unit.share is None else unit.share for unit in units)) for units in columns]


def _scale(columns: Sequence[tuple[float, float]], room: float) -> float:
    """Pixels for a share of 1, so that columns of at least their least width fill the room."""
    low, high = 0.0, room * 1e3
    for _ in range(60):
        middle = (low + high) / 2
        wide = sum(max(least, middle * share + 6) for least, share in columns)
        low, high = (low, middle) if wide > room else (middle, high)
    return low


def _draw_band(
    canvas: Any,
    scene: Scene,
    band: Sequence[Sequence[int]],
    names: Sequence[str],
    corner: tuple[float, float],
    scale: float,
) -> None:
    x, top = corner
    for row, name in enumerate(names):
        canvas.text((MARGIN, top + row * LANE + 2), _clipped(name), INK, font(TEXT))
    for stage, (least, share) in zip(band, _shares(scene.architecture, band), strict=True):
        width = max(least, scale * share + 6)
        for index in stage:
            unit = scene.architecture.units[index]
            own = max(4.0, scale * (1.0 if unit.share is None else unit.share))
            y = top + names.index(unit.lane) * LANE
            _draw_unit(canvas, unit, bool(scene.mask[index]), (x + (width - own) / 2, y, x + (width + own) / 2, y + BOX))
        x += width


def _draw_unit(canvas: Any, unit: Unit, skipped: bool, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    if skipped:
        canvas.rectangle(box, PAPER, GREY, 1)
        canvas.line((left, bottom, right, top), GREY, 1)
        canvas.line((left, top, right, bottom), GREY, 1)
    else:
        canvas.rectangle(box, KEPT, KEPT, 1)
    canvas.text(((left + right) / 2, bottom + 2), unit.label, GREY if skipped else INK, font(SMALL), anchor="ma")


def _legend(canvas: Any, top: float) -> None:
    x, unit = MARGIN, Unit("", "", "", 0, None)
    for word, skipped in (("kept", False), ("skipped", True)):
        _draw_unit(canvas, unit, skipped, (x, top + 2, x + 18, top + 14))
        canvas.text((x + 24, top), word, INK, font(SMALL))
        x += 84
    canvas.text((x, top), "width: share of the model's MACs", GREY, font(SMALL))


def _draw_facts(canvas: Any, facts: Sequence[str], top: float) -> None:
    """Left of the curve; a line that is too long for that is written smaller."""
    room = WIDTH // 2 - MARGIN - 8
    for number, fact in enumerate(facts):
        fitting = next((size for size in range(TEXT, LEAST_TEXT, -1) if font(size).getlength(fact) <= room), LEAST_TEXT)
        canvas.text((MARGIN, top + 22 * number), fact, INK, font(fitting))


def _draw_curve(canvas: Any, scene: Scene, box: tuple[float, float, float, float]) -> None:
    """Best reward over evaluations, as steps."""
    left, top, right, bottom = box
    canvas.text((left, top), "best reward so far, over evaluations", GREY, font(SMALL))
    points = [(at, value) for at, value in scene.improvements if np.isfinite(value)]
    left, top, right, bottom = left + 70, top + 24, right - 10, bottom - 18
    canvas.line((left, top, left, bottom, right, bottom), GREY, 1)
    if not points:
        canvas.text((left + 12, (top + bottom) / 2 - 8), "no mask has been scored yet", GREY, font(SMALL))
        return
    low, high, last = points[0][1], points[-1][1], max(scene.evaluations, 1)
    for value, y in {high: top + 4, low: bottom - 8 if high > low else top + 4}.items():
        canvas.text((left - 8, y), f"{value:.4g}", GREY, font(SMALL), anchor="rm")
    canvas.text((right, bottom + 4), str(last), GREY, font(SMALL), anchor="ra")
    steps: list[float] = []
    for at, value in (*points, (last, high)):
        x = left + (right - left) * at / last
        y = top + 4 if high == low else bottom - 8 - (bottom - top - 12) * (value - low) / (high - low)
        steps += [x, steps[-1], x, y] if steps else [x, y]
    canvas.line(steps, CURVE, 3)
    canvas.ellipse((x - 4, y - 4, x + 4, y + 4), CURVE)


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """The font of all pictures, in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
