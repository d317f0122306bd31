"""The layout of a model's units in figures and HTML pages, and drawing them under a mask, as environments render it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from das_gym.names import format_count
from das_gym.problem.mask_space import skipped_names

if TYPE_CHECKING:
    from das_gym.models.base import Layer
    from das_gym.problem.budget import MaskCost
    from das_gym.tables.table import SubnetTable

WIDTH = 960
MARGIN = 24
TOP = MARGIN + 60
"""Pixels of title and legend."""

LANE = 44
"""Height of a lane in pixels, including its labels and the gap below."""

BOX = 22
BAND_STAGES = 24
"""Largest number of stages side by side; further ones are drawn in another band below."""

LINE = 22
FACTS = 6
"""Height of a line of text in pixels, and the number of lines below the units."""

MAX_LABEL = 22
"""Characters of a lane's label; longer ones are cut."""

TITLE = 20
TEXT = 15
SMALL = 12
SMALLEST = 9
"""Sizes of the font in pixels."""

INK = "#1b1b1b"
GREY = "#595959"
PAPER = "#ffffff"
KEPT = "#0072b2"
CURVE = "#b34700"
"""Each has a contrast ratio of at least 4.5 to `PAPER`. Blue and orange are distinguishable with colour blindness."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

RENDER_MODES = ("ansi", "rgb_array")


@dataclass(frozen=True)
class Unit:
    """The place of a unit.

    Attributes:
        name: As masks name it, such as `text.3`.
        lane: Its row: the name without numbers, `text`.
        label: Its label within the lane: the numbers, `3`.
        stage: Its column, from 0 on.
        share: Share of the full model's MACs that skipping it saves; None if unknown.
    """

    name: str
    lane: str
    label: str
    stage: int
    share: float | None


@dataclass(frozen=True)
class Architecture:
    """The units of a model, in mask order."""

    units: tuple[Unit, ...]

    @classmethod
    def from_names(
        cls, names: Sequence[str], stages: Sequence[int] | None = None, macs: MaskCost | None = None
    ) -> Architecture:
        """Return the architecture of units by name, with their stages (each its own if None) and their costs, if known."""
        shares = [None] * len(names) if macs is None else (np.maximum(macs.savings, 0) / macs.full).tolist()
        places = range(len(names)) if stages is None else stages
        return cls(tuple(Unit(n, *_split(n), p, s) for n, p, s in zip(names, places, shares, strict=True)))

    @classmethod
    def from_layers(cls, layers: Iterable[Layer], macs: MaskCost | None = None) -> Architecture:
        """Return the architecture of a model's units, with their costs, if known."""
        layers = tuple(layers)
        return cls.from_names([layer.name for layer in layers], [layer.stage for layer in layers], macs)

    @classmethod
    def from_table(cls, table: SubnetTable) -> Architecture:
        """Return the architecture of a table, whose statistic `depth` determines the stages."""
        stages = None
        if "depth" in table.meta.statistics:
            stages = np.unique(table.statistic("depth"), return_inverse=True)[1].tolist()
        return cls.from_names(table.meta.layer_names, stages, table.layer_macs)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes in the order of their first units."""
        return tuple(dict.fromkeys(unit.lane for unit in self.units))

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the units of each stage."""
        places = sorted({unit.stage for unit in self.units})
        return tuple(tuple(i for i, unit in enumerate(self.units) if unit.stage == place) for place in places)

    def lines(self, mask: Sequence[bool] | np.ndarray) -> list[str]:
        """Return a line per stage: `stage 2: keep text.2 (4.1 %), SKIP image.2 (9.0 %)`."""
        return [
            f"stage {number}: " + ", ".join(_word(self.units[i], bool(mask[i])) for i in indices)
            for number, indices in enumerate(self.stages)
        ]


def _split(name: str) -> tuple[str, str]:
    """Return lane and label of a unit: `decoder.3.mlp` is number 3 of the lane `decoder.mlp`."""
    parts = name.split(".")
    words = [part for part in parts if not part.isdecimal()]
    return ".".join(words) or "units", ".".join(part for part in parts if part.isdecimal()) or name


def _word(unit: Unit, skipped: bool) -> str:
    share = "" if unit.share is None else f" ({100 * unit.share:.1f} %)"
    return f"{'SKIP' if skipped else 'keep'} {unit.name}{share}"


class Layout(NamedTuple):
    """The box of each unit, top and name of each lane, and the end of the lowest band."""

    boxes: tuple[Box, ...]
    lanes: tuple[tuple[float, str], ...]
    bottom: int


@lru_cache(maxsize=64)
def layout(architecture: Architecture) -> Layout:
    """Return the places of units: stages from left to right, a lane for each kind of unit."""
    units = architecture.units
    stages = architecture.stages
    shares = [1.0 if unit.share is None else unit.share for unit in units]
    # Bands of the same length, so that no last band has a single stage.
    n_bands = max(1, -(-len(stages) // BAND_STAGES))
    each = max(1, -(-len(stages) // n_bands))
    indent = MARGIN + 12 + int(max(font(TEXT).getlength(_clipped(lane)) for lane in architecture.lanes))
    column = (WIDTH - indent - MARGIN) / each
    scale = (column - 6) / max(*shares, 1e-9)  # all shares are 0 if adapters cost more than the layers
    boxes: list[Box] = [(0, 0, 0, 0)] * len(units)
    lanes = []
    top = TOP
    for start in range(0, len(stages), each):
        band = stages[start : start + each]
        present = {units[i].lane for stage in band for i in stage}
        names = [lane for lane in architecture.lanes if lane in present]
        lanes += [(top + row * LANE + 2, name) for row, name in enumerate(names)]
        for place, stage in enumerate(band):
            middle = indent + (place + 0.5) * column
            for i in stage:
                half = max(4.0, scale * shares[i]) / 2
                y = top + names.index(units[i].lane) * LANE
                boxes[i] = (middle - half, y, middle + half, y + BOX)
        top += len(names) * LANE + 16
    return Layout(tuple(boxes), tuple(lanes), top)


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 3]}..."


def draw(
    architecture: Architecture,
    mask: np.ndarray,
    title: str,
    facts: Sequence[str],
    best: Sequence[float] = (),
) -> np.ndarray:
    """Return a (height, WIDTH, 3) uint8 image of units under a (n_units,) bool mask, with a title and up to `FACTS` facts.

    `best`, the best reward after each evaluation, is drawn as a curve.
    """
    from PIL import Image, ImageDraw

    places = layout(architecture)
    height = places.bottom + FACTS * LINE + MARGIN
    image = Image.new("RGB", (WIDTH, height + height % 2), PAPER)  # even, as video codecs need it
    canvas = ImageDraw.Draw(image)
    canvas.text((MARGIN, MARGIN - 6), title, INK, font(TITLE))
    top = MARGIN + 26
    for x, word, skipped in ((MARGIN, "kept", False), (MARGIN + 84, "skipped", True)):
        _draw_box(canvas, (x, top + 2, x + 18, top + 14), "", skipped)
        canvas.text((x + 24, top), word, INK, font(SMALL))
    canvas.text((MARGIN + 168, top), "width: share of the model's MACs", GREY, font(SMALL))
    for y, name in places.lanes:
        canvas.text((MARGIN, y), _clipped(name), INK, font(TEXT))
    for unit, box, skipped in zip(architecture.units, places.boxes, mask, strict=True):
        _draw_box(canvas, box, unit.label, bool(skipped))
    for number, fact in enumerate(facts):
        fits = not len(best) or font(TEXT).getlength(fact) <= WIDTH // 2 - MARGIN - 8
        canvas.text((MARGIN, places.bottom + LINE * number), fact, INK, font(TEXT if fits else SMALLEST))
    if len(best):
        _draw_curve(canvas, np.asarray(best), (WIDTH // 2 + 70, places.bottom, WIDTH - MARGIN - 10, places.bottom + 124))
    return np.asarray(image)


def _draw_box(canvas: Any, box: Box, label: str, skipped: bool) -> None:
    left, top, right, bottom = box
    if skipped:
        canvas.rectangle(box, PAPER, GREY, 1)
        canvas.line((left, bottom, right, top), GREY, 1)
        canvas.line((left, top, right, bottom), GREY, 1)
    else:
        canvas.rectangle(box, KEPT, KEPT, 1)
    canvas.text(((left + right) / 2, bottom + 2), label, GREY if skipped else INK, font(SMALL), anchor="ma")


def _draw_curve(canvas: Any, best: np.ndarray, box: Box) -> None:
    left, top, right, bottom = box
    canvas.text((left - 70, top), "best reward so far, over evaluations", GREY, font(SMALL))
    canvas.line((left, top + 24, left, bottom, right, bottom), GREY, 1)
    low = float(best[0])
    high = float(best[-1])
    x = left + (right - left) * np.arange(1, len(best) + 1) / len(best)
    y = bottom - 8 - (bottom - top - 36) * (best - low) / (high - low or 1.0)
    for value, at in ((low, y[0]), (high, y[-1])):
        canvas.text((left - 8, at), f"{value:.4g}", GREY, font(SMALL), anchor="rm")
    canvas.text((right, bottom + 4), str(len(best)), GREY, font(SMALL), anchor="ra")
    steps = np.stack((np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]), axis=1)
    canvas.line(steps.flatten().tolist(), CURVE, 3)


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """Return the font in a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


class LastStep(NamedTuple):
    """The last step of an episode."""

    mask: np.ndarray
    reward: float
    info: dict[str, Any]
    ended: bool

    @property
    def scored(self) -> bool:
        """Whether the mask was scored: not within a sequence, and not off the budget."""
        return bool(np.isfinite(self.info["loss"]))

    @property
    def reason(self) -> str:
        """Why the mask was not scored."""
        return "off the budget" if self.ended else "still choosing"


def render(render_mode: str, architecture: Architecture, budget: str, last: LastStep | None) -> str | np.ndarray:
    """Render the units after the last step, None right after a reset: text, or a (height, width, 3) uint8 array."""
    units = architecture.units
    mask = np.zeros(len(units), dtype=bool) if last is None else last.mask
    if render_mode == "ansi":
        words = f"{format_count(len(units), 'unit')}, none chosen yet"
        if last is not None:
            words = describe_step([unit.name for unit in units], last)
        return "\n".join([*architecture.lines(mask), words]) + "\n"
    title = f"{int(mask.sum())} of {format_count(len(units), 'unit')} skipped (budget: {budget})"
    facts = ["nothing chosen yet"] if last is None else _step_facts(last)
    return draw(architecture, mask, title, facts)


def describe_step(names: list[str], last: LastStep) -> str:
    """Return one line on a step, with the names of the layers that are skipped."""
    skipped = ", ".join(skipped_names(names, last.mask)) or "nothing"
    saved = f"MACs saved {100 * last.info['macs_saved']:.1f} %"
    if not last.scored:
        return f"skipped {skipped}: not scored, {last.reason}; reward {last.reward:.4f}, {saved}"
    return f"skipped {skipped}: reward {last.reward:.4f}, loss {last.info['loss']:.4f}, {saved}"


def _step_facts(last: LastStep) -> list[str]:
    info = last.info
    scored = f"{format_count(info['evaluations'], 'mask')} scored"
    saved = f"MACs saved {100 * info['macs_saved']:.1f} %"
    if not last.scored:
        return [f"reward {last.reward:.4f}: {last.reason}", "not scored", saved, scored]
    losses = f"loss {info['loss']:.4f} nats, metric {100 * info['metric']:.1f} %"
    return [f"reward {last.reward:.4f}", losses, saved, scored]
