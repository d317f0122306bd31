"""Pareto fronts: the masks that no other mask dominates, and the volume that they cover."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from das_gym.problem.budget import Floats


def front_rows(saved: Floats, losses: Floats) -> npt.NDArray[np.intp]:
    """Return the rows of the masks on the front, from the least saved up; of equal ones the first.

    `saved` is the (m,) share of the cost that each mask saves; masks with a non-finite loss are never on it.
    """
    # From the largest saving down, a mask is on the front if its loss is below that of all before it.
    order = np.lexsort((losses, -saved))
    ordered = np.where(np.isfinite(losses), losses, np.inf)[order]
    lowest = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
    return order[ordered < lowest][::-1]


def hypervolume(saved: Floats, losses: Floats, reference: tuple[float, float]) -> float:
    """Return the exact area, share saved times nats, between the front and a reference point of share saved and loss."""
    rows = front_rows(saved, losses)
    rows = rows[(saved[rows] > reference[0]) & (losses[rows] < reference[1])]
    widths = np.diff(saved[rows], prepend=reference[0])
    return float(widths @ (reference[1] - losses[rows]))


def reference_point(saved: Floats, losses: Floats) -> tuple[float, float]:
    """Return the hypervolume's reference point: the full model's share saved, and the loss of the mask that saves most.

    The first mask is the full model.
    """
    last = float(losses[int(np.argmax(saved))])
    if not np.isfinite(last):
        raise ValueError("the mask that saves most has a non-finite loss, so the hypervolume has no reference point")
    return float(saved[0]), last


def dominated_volume(points: Floats, reference: npt.ArrayLike = 0.0) -> float:
    """Return the exact volume between a reference point and (m, dimensions) points, two dimensions or more.

    More is better in each. A point that is not above the reference in all of them, or is NaN in one, covers nothing.
    """
    points = points - np.asarray(reference)
    points = points[(points > 0).all(axis=1)]
    if points.shape[1] == 2:
        return hypervolume(points[:, 0], -points[:, 1], (0.0, 0.0))
    points = points[np.argsort(-points[:, -1], kind="stable")]
    # Slices between one value of the last dimension and the next: each has the volume of the points that reach it.
    depths = -np.diff(points[:, -1], append=0.0)
    return float(sum(depth * dominated_volume(points[: i + 1, :-1]) for i, depth in enumerate(depths) if depth))


def undominated_rows(points: Floats) -> npt.NDArray[np.intp]:
    """Return the rows of the (m, dimensions) points that no other dominates; of equal ones the first.

    NaN counts as minus infinity.
    """
    points = np.where(np.isnan(points), -np.inf, points)
    left = np.lexsort(-points.T[::-1])  # what dominates a point comes before it
    found: list[int] = []
    while len(left):
        found.append(int(left[0]))
        left = left[~(points[left] <= points[left[0]]).all(axis=1)]
    return np.sort(np.array(found, dtype=np.intp))
