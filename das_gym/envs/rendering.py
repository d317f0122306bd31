"""What an environment shows of itself: the architecture under a mask in words (`ansi`) or as a picture (`rgb_array`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import Points, Scene, draw
from das_gym.envs.scoring import Scorer
from das_gym.problem.mask_space import skipped_names
from das_gym.wording import counted

RENDER_MODES = ("ansi", "rgb_array")


class Shown(NamedTuple):
    """What the last step did.

    Attributes:
        mask: (n_layers,) bool, True = skipped so far.
        reward: Of that step.
        info: Of that step.
        ended: Whether it ended the episode.
    """

    mask: np.ndarray
    reward: float
    info: dict[str, Any]
    ended: bool

    @property
    def scored(self) -> bool:
        """Whether the mask was scored: not amid a sequence, and not off the budget."""
        return bool(np.isfinite(self.info["loss"]))


@dataclass(frozen=True)
class View:
    """What is searched, and how far the search is.

    Attributes:
        architecture: The units.
        budget: In words.
        improvements: At which evaluation the best reward rose, and to what.
        evaluations: Masks scored so far.
        problem: The problem's name, where there are several.
        height: Of pictures, pixels; None is the architecture's own.
    """

    architecture: Architecture
    budget: str
    improvements: Points = ()
    evaluations: int = 0
    problem: str = ""
    height: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the units, in mask order."""
        return [unit.name for unit in self.architecture.units]


def check_render_mode(render_mode: str | None) -> None:
    """Refuse what cannot be shown.

    Raises:
        ValueError: another mode than those of `RENDER_MODES` or None.
    """
    if render_mode not in (None, *RENDER_MODES):
        raise ValueError(
            f"render_mode={render_mode!r} is not allowed; use 'ansi' (text, a line a stage), 'rgb_array' (a picture) or None"
        )


def render(render_mode: str | None, scorer: Scorer, shown: Shown | None) -> str | np.ndarray | None:
    """What `env.render()` returns.

    Args:
        render_mode: One of `RENDER_MODES`, or None, which shows nothing.
        scorer: The environment's.
        shown: What its last step did; None right after a reset.

    Returns:
        Text that ends in a line's end; or a picture, (height, width, 3) uint8, always of one size.
    """
    if render_mode is None:
        return None
    view = View(scorer.architecture(), scorer.budget.describe(), scorer.improvements, scorer.evaluations)
    return show(render_mode, view, shown)


def show(render_mode: str, view: View, shown: Shown | None) -> str | np.ndarray:
    """As `render`, of whatever is searched."""
    count = len(view.architecture.units)
    mask = np.zeros(count, dtype=bool) if shown is None else shown.mask
    if render_mode == "ansi":
        words = f"{counted(count, 'layer')}, none chosen yet" if shown is None else describe(view.names, shown)
        about = f"{view.problem}: " if view.problem else ""
        return "\n".join([*view.architecture.lines(mask), about + words]) + "\n"
    title = f"{int(mask.sum())} of {counted(count, 'layer')} skipped (budget: {view.budget})"
    facts = [*([view.problem] if view.problem else []), *(["nothing chosen yet"] if shown is None else _facts(shown))]
    return draw(Scene(view.architecture, mask, title, facts, view.improvements, view.evaluations), view.height)


def describe(names: Sequence[str], shown: Shown) -> str:
    """One line on a mask of units by these names."""
    skipped = ", ".join(skipped_names(names, shown.mask)) or "nothing"
    saved = f"MACs saved {100 * shown.info['macs_saved']:.1f} %"
    if not shown.scored:
        return f"skipped {skipped}: not scored, {_reason(shown)}; reward {shown.reward:.4f}, {saved}"
    return f"skipped {skipped}: reward {shown.reward:.4f}, loss {shown.info['loss']:.4f}, {saved}"


def _facts(shown: Shown) -> list[str]:
    info, scored = shown.info, shown.scored
    return [
        f"reward {shown.reward:.4f}" if scored else f"reward {shown.reward:.4f}: {_reason(shown)}",
        f"loss {info['loss']:.4f} nats, metric {100 * info['metric']:.1f} %" if scored else "not scored",
        f"MACs saved {100 * info['macs_saved']:.1f} %",
        f"{counted(info['evaluations'], 'mask')} scored",
    ]


def _reason(shown: Shown) -> str:
    return "off the budget" if shown.ended else "still choosing"
