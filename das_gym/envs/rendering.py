"""Rendering of environments: the architecture under a mask as text (`ansi`) or as an RGB array (`rgb_array`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from das_gym.drawing.architecture import Architecture, draw
from das_gym.names import counted
from das_gym.problem.mask_space import skipped_names

RENDER_MODES = ("ansi", "rgb_array")


class LastStep(NamedTuple):
    """The last step of an episode.

    Attributes:
        mask: (n_layers,) bool, True = skipped so far.
        reward: Its reward.
        info: Its `info`.
        ended: Whether it ended the episode.
    """

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


@dataclass(frozen=True)
class View:
    """The problem that is searched.

    Attributes:
        architecture: The units.
        budget: The budget in words.
        problem: The problem's name, where there are several.
        height: Height of RGB arrays in pixels; None takes what the architecture needs.
    """

    architecture: Architecture
    budget: str
    problem: str = ""
    height: int | None = None


def render(render_mode: str, view: View, last: LastStep | None) -> str | np.ndarray:
    """Render a view after the last step, None right after a reset: text, or a (height, width, 3) uint8 array of one size."""
    units = view.architecture.units
    mask = np.zeros(len(units), dtype=bool) if last is None else last.mask
    if render_mode == "ansi":
        words = f"{counted(len(units), 'unit')}, none chosen yet"
        if last is not None:
            words = describe([unit.name for unit in units], last)
        problem = f"{view.problem}: " if view.problem else ""
        return "\n".join([*view.architecture.lines(mask), problem + words]) + "\n"
    title = f"{int(mask.sum())} of {counted(len(units), 'unit')} skipped (budget: {view.budget})"
    facts = [view.problem] if view.problem else []
    facts += ["nothing chosen yet"] if last is None else _facts(last)
    return draw(view.architecture, mask, title, facts, view.height)


def describe(names: list[str], last: LastStep) -> str:
    """Return one line on a step, with the names of the layers that are skipped."""
    skipped = ", ".join(skipped_names(names, last.mask)) or "nothing"
    saved = f"MACs saved {100 * last.info['macs_saved']:.1f} %"
    if not last.scored:
        return f"skipped {skipped}: not scored, {last.reason}; reward {last.reward:.4f}, {saved}"
    return f"skipped {skipped}: reward {last.reward:.4f}, loss {last.info['loss']:.4f}, {saved}"


def _facts(last: LastStep) -> list[str]:
    info = last.info
    scored = f"{counted(info['evaluations'], 'mask')} scored"
    saved = f"MACs saved {100 * info['macs_saved']:.1f} %"
    if not last.scored:
        return [f"reward {last.reward:.4f}: {last.reason}", "not scored", saved, scored]
    losses = f"loss {info['loss']:.4f} nats, metric {100 * info['metric']:.1f} %"
    return [f"reward {last.reward:.4f}", losses, saved, scored]
