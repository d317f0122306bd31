"""Sets of masks: those that satisfy a budget and the moves among them, from which agents choose; and Pareto fronts."""

import itertools
import math
from collections.abc import Callable, Container, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from das_gym.problem.budget import Budget, Floats, Masks

MAX_LISTED = 2**16
"""The most masks that are listed; nothing else here depends on their number."""

_DRAWS = 200


def every_mask(n_layers: int, skip_num: int | None = None) -> Masks:
    """Return (m, n_layers) bool, True = skipped: every mask, or every one of `skip_num` layers.

    Mask number `sum(mask[i] << i)` is in the row of that number, as in tables; those of `skip_num` layers come in
    lexicographic order of the layers skipped.
    """
    count = 2**n_layers if skip_num is None else math.comb(n_layers, skip_num)
    if n_layers < 1 or count > MAX_LISTED:
        which = f"2^{n_layers} masks" if skip_num is None else f"{count:,} masks of {skip_num}"
        raise ValueError(
            f"{which} of {n_layers} layers cannot be listed: expected at least 1 layer and at most {MAX_LISTED:,} masks. "
            "Search them with an agent that samples, such as bayes."
        )
    if skip_num is None:
        return (np.arange(count)[:, None] >> np.arange(n_layers) & 1).astype(bool)
    chosen = np.array(list(itertools.combinations(range(n_layers), skip_num)), dtype=np.intp)
    masks = np.zeros((count, n_layers), dtype=bool)
    np.put_along_axis(masks, chosen, True, axis=1)
    return masks


def masks_up_to(n_layers: int, max_skipped: int | None) -> Masks:
    """Return (m, n_layers) bool, True = skipped: every mask of 0, 1, ... `max_skipped` layers, in this order; None = all."""
    if max_skipped is None:
        return every_mask(n_layers)
    if not 0 <= max_skipped <= n_layers:
        raise ValueError(f"`max_skipped` is out of range: got {max_skipped}, expected 0..{n_layers}")
    count = sum(math.comb(n_layers, skipped) for skipped in range(max_skipped + 1))
    if count > MAX_LISTED:
        raise ValueError(
            f"{count:,} masks of up to {max_skipped} of {n_layers} layers cannot be listed ({MAX_LISTED:,} at most). Use a "
            "smaller `max_skipped`."
        )
    return np.concatenate([every_mask(n_layers, skipped) for skipped in range(max_skipped + 1)])


def skipped_names(layer_names: Iterable[str], mask: Iterable[Any]) -> list[str]:
    """Return the names of the layers that a mask skips."""
    return [name for name, skipped in zip(layer_names, mask, strict=True) if skipped]


def flipped(mask: Masks, layers: npt.NDArray[np.intp]) -> Masks:
    """Return (m, n_layers) bool masks: `mask` with the layers in each row of `layers`, (m, any), flipped once."""
    masks = np.repeat(mask[None], len(layers), axis=0)
    np.put_along_axis(masks, layers, ~mask[layers], axis=1)
    return masks


class MaskSpace:
    """The masks that satisfy a budget, and the moves among them, for any number of layers.

    With `skip_num`, masks that skip exactly that many layers are allowed. With a share to save, all masks that save it are
    allowed, but `top` and `sample` return masks that skip no more layers than needed.

    Args:
        budget: A budget with `skip_num` or `saved`. ValueError for one without, since agents cannot know how much to skip.

    Example:
        >>> import numpy as np
        >>> space = MaskSpace(Budget(n_layers=12, skip_num=4))
        >>> space.size
        495
        >>> np.flatnonzero(space.top(np.arange(12.0)))
        array([ 8,  9, 10, 11])
    """

    def __init__(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f"`budget` is not a Budget: got {budget!r}. Give Budget(n_layers=12, skip_num=4)")
        if budget.is_free:
            raise ValueError(
                "`budget` allows every mask: give `skip_num`, or a share of a cost to save (0 = at most the full model's)"
            )
        self.budget = budget
        self.n_layers = int(budget.n_layers)
        self.skip_num = budget.skip_num

    @cached_property
    def is_enumerable(self) -> bool:
        """Whether the masks can be listed: there are `MAX_LISTED` or fewer."""
        count = 2**self.n_layers if self.skip_num is None else math.comb(self.n_layers, self.skip_num)
        return count <= MAX_LISTED

    @cached_property
    def masks(self) -> Masks:
        """(size, n_layers) bool, every allowed mask, always in the same order; ValueError if they are too many."""
        masks = every_mask(self.n_layers, self.skip_num)
        return masks[self.contains(masks)]

    @property
    def size(self) -> int | None:
        """Number of allowed masks; None for a budget by cost with too many layers to count them."""
        if self.skip_num is not None:
            return math.comb(self.n_layers, self.skip_num)
        return len(self.masks) if self.is_enumerable else None

    def contains(self, masks: Masks) -> Masks:
        """Return (m,) bool: which of the (m, n_layers) masks are allowed."""
        return self.budget.is_feasible(np.asarray(masks, dtype=bool))

    def top(self, values: Floats) -> Masks:
        """Return the (n_layers,) bool mask of the layers with the largest `values`, (n_layers,), of equal ones the first.

        With a budget by cost, layers are skipped from the largest value down until the budget is satisfied. Then layers that
        it does not need are kept again, from the smallest value up.

        Raises:
            ValueError: The shape is wrong, or a value is NaN.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (self.n_layers,) or np.isnan(values).any():
            raise ValueError(f"`values` are wrong: got {values.tolist()}, expected {self.n_layers} numbers, one per layer")
        mask = self.budget.skip_highest(values[None])[0]
        if self.skip_num is not None:
            return mask
        # A layer that saves much may have made others unnecessary: skipping them would cost quality for nothing.
        for layer in np.argsort(-values, kind="stable")[::-1]:
            if mask[layer]:
                mask[layer] = False
                mask[layer] = not self.contains(mask[None])[0]
        return mask

    def sample(self, rng: np.random.Generator) -> Masks:
        """Return a random (n_layers,) bool mask, which skips layers in random order until the budget is satisfied."""
        return self.top(rng.random(self.n_layers))

    def mutate(self, mask: Masks, strength: int, rng: np.random.Generator) -> Masks:
        """Return an allowed mask in which up to `strength` skipped layers of `mask` are replaced by random layers."""
        skipped = np.flatnonzero(mask)
        freed = rng.choice(skipped, min(strength, len(skipped)), replace=False)
        # Skipped layers have 2 to 3, kept ones 0 to 1, freed ones less: `top` fills up with random kept layers.
        values = rng.random(self.n_layers) + np.where(mask, 2.0, 0.0)
        values[freed] -= 4.0
        return self.top(values)

    def moves(self, mask: Masks) -> npt.NDArray[np.intp]:
        """Return (m, 2) allowed flips of a skipped and a kept layer; with a budget by cost, of a layer, given twice."""
        skipped, kept = np.flatnonzero(mask), np.flatnonzero(~mask)
        pairs = np.stack((np.repeat(skipped, len(kept)), np.tile(kept, len(skipped))), axis=1)
        if self.skip_num is not None:
            return pairs
        pairs = np.concatenate((pairs, np.repeat(np.arange(self.n_layers), 2).reshape(-1, 2)))
        return pairs[self.contains(flipped(mask, pairs))]

    def distinct(self, n: int, draw: Callable[[], Masks], rng: np.random.Generator, seen: Container[bytes] = ()) -> Masks:
        """Return up to `n` distinct masks, (m, n_layers) bool, whose `mask.tobytes()` are not in `seen`.

        `draw` returns one mask at a time. If 200 draws do not give `n` masks, random other masks are added. There are fewer
        than `n` if no more exist or are found.
        """
        found: dict[bytes, Masks] = {}
        for source in [draw] if self.is_enumerable else [draw, lambda: self._any(rng)]:
            for _ in range(_DRAWS):
                if len(found) >= n:
                    break
                mask = source()
                if mask.tobytes() not in seen:
                    found.setdefault(mask.tobytes(), mask)
        if len(found) < n and self.is_enumerable:
            others = [mask for mask in self.masks if mask.tobytes() not in seen and mask.tobytes() not in found]
            for index in rng.permutation(len(others))[: n - len(found)]:
                found[others[index].tobytes()] = others[index]
        return np.array(list(found.values()), dtype=bool).reshape(len(found), self.n_layers)

    def _any(self, rng: np.random.Generator) -> Masks:
        mask = self.sample(rng)
        if self.skip_num is not None:
            return mask
        more = mask | (rng.random(self.n_layers) < rng.random())
        return more if self.contains(more[None])[0] else mask


def front_rows(saved: Floats, losses: Floats) -> npt.NDArray[np.intp]:
    """Return the indices of the masks on the Pareto front of (m,) shares saved and losses, by rising share saved."""
    # From the largest saving down, a mask is on the front if its loss is below that of all before it.
    order = np.lexsort((losses, -saved))
    ordered = np.where(np.isfinite(losses), losses, np.inf)[order]
    lowest = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
    return order[ordered < lowest][::-1]


def hypervolume(saved: Floats, losses: Floats, reference: tuple[float, float]) -> float:
    """Return the exact area between the Pareto front and a reference point (share saved, loss), in nats."""
    rows = front_rows(saved, losses)
    rows = rows[(saved[rows] > reference[0]) & (losses[rows] < reference[1])]
    widths = np.diff(saved[rows], prepend=reference[0])
    return float(widths @ (reference[1] - losses[rows]))


def reference_point(saved: Floats, losses: Floats) -> tuple[float, float]:
    """Return the hypervolume's reference: share saved by the first mask, the full model; loss of the one that saves most."""
    last = float(losses[int(np.argmax(saved))])
    if not np.isfinite(last):
        raise ValueError("the mask that saves most has a non-finite loss, so the hypervolume has no reference point")
    return float(saved[0]), last
