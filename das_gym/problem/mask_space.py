"""Which masks an agent may choose: exactly `skip_num` layers, or at least a share of the MACs saved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Savings = Callable[[Masks], Floats]

ENUMERABLE_LAYERS = 16
ENUMERABLE_MASKS = 2**17
_DRAWS = 200


class MaskSpace:
    """The masks that keep one budget, and the moves among them.

    A budget by count allows exactly `skip_num` layers. A budget by cost allows every mask that saves at least
    `macs_saved`: also masks that skip more than they need to, though `top` and `sample` give none of those.

    Args:
        n_layers: Number of skippable layers, at least 1.
        skip_num: How many layers a mask skips, 0..n_layers; None for a budget by cost.
        macs_saved: Least share of the MACs to save; None for a budget by count.
        savings: Needed with `macs_saved`: what masks save. Either (n_layers,) shares that add up, or a function
            from (m, n_layers) masks to (m,) shares.

    Raises:
        ValueError: a number outside its range, a saving that no mask reaches, or not exactly one budget.
    """

    def __init__(
        self,
        n_layers: int,
        skip_num: int | None = None,
        macs_saved: float | None = None,
        savings: Savings | Floats | None = None,
    ) -> None:
        if not _is_whole(n_layers) or n_layers < 1:
            raise ValueError(f"n_layers={n_layers!r} is not allowed; give a whole number, at least 1 skippable layer")
        if (skip_num is None) == (macs_saved is None):
            raise ValueError(
                f"skip_num={skip_num}, macs_saved={macs_saved}: give exactly one of them (macs_saved=0 allows every mask "
                "that costs no more than the full model)"
            )
        if skip_num is not None and not (_is_whole(skip_num) and 0 <= skip_num <= n_layers):
            raise ValueError(
                f"skip_num={skip_num!r} is not allowed with {n_layers} skippable layers; use 0..{n_layers}, a whole number"
            )
        if macs_saved is not None and (isinstance(macs_saved, bool) or not isinstance(macs_saved, Real)):
            raise ValueError(f"macs_saved={macs_saved!r} is not allowed; give a share of the MACs, such as 0.12")
        self.n_layers = int(n_layers)
        self.skip_num = None if skip_num is None else int(skip_num)
        self.macs_saved = macs_saved
        if macs_saved is not None:
            self._savings: Savings = _as_function(n_layers, savings)
            self._check_reach(macs_saved)

    def _check_reach(self, macs_saved: float) -> None:
        masks = self._all if self.n_layers <= ENUMERABLE_LAYERS else self._full[None]
        saved = self._savings(masks)
        if not saved.max() >= macs_saved:
            raise ValueError(
                f"macs_saved={macs_saved} is out of reach: no mask of these {self.n_layers} layers saves more than "
                f"{saved.max():.4f}; give that or less"
            )

    @cached_property
    def _all(self) -> Masks:
        """All 2^n masks, mask number `sum(mask[i] << i)` in row of that number."""
        numbers = np.arange(2**self.n_layers)
        return (numbers[:, None] >> np.arange(self.n_layers)) & 1 == 1

    @cached_property
    def _full(self) -> Masks:
        """The mask of all layers that save something on their own."""
        single = self._savings(np.eye(self.n_layers, dtype=bool)) - self._savings(np.zeros((1, self.n_layers), dtype=bool))
        return single > 0

    @property
    def budget(self) -> dict[str, Any]:
        """What the space is, in plain values: `n_layers`, `skip_num`, `macs_saved`."""
        return {"n_layers": self.n_layers, "skip_num": self.skip_num, "macs_saved": self.macs_saved}

    @cached_property
    def enumerable(self) -> bool:
        """Whether all masks are few enough to be listed."""
        if self.skip_num is not None:
            return math.comb(self.n_layers, self.skip_num) <= ENUMERABLE_MASKS
        return self.n_layers <= ENUMERABLE_LAYERS

    @cached_property
    def masks(self) -> Masks:
        """(size, n_layers) bool, every allowed mask, always in the same order.

        Raises:
            ValueError: they are too many.
        """
        if not self.enumerable:
            raise ValueError(
                f"the masks of {self.budget} are too many to list; use an agent that samples them, such as bayes"
            )
        if self.skip_num is None:
            return self._all[self.contains(self._all)]
        chosen = np.array(list(itertools.combinations(range(self.n_layers), self.skip_num)), dtype=np.intp)
        masks = np.zeros((len(chosen), self.n_layers), dtype=bool)
        np.put_along_axis(masks, chosen, True, axis=1)
        return masks

    @property
    def size(self) -> int | None:
        """How many masks are allowed; None for a budget by cost over too many layers to count them."""
        if self.skip_num is not None:
            return math.comb(self.n_layers, self.skip_num)
        return len(self.masks) if self.enumerable else None

    def contains(self, masks: Masks) -> npt.NDArray[np.bool_]:
        """(m,) bool: which of the (m, n_layers) masks are allowed."""
        masks = np.asarray(masks, dtype=bool)
        if self.macs_saved is None:
            return masks.sum(axis=1) == self.skip_num
        return self._savings(masks) >= self.macs_saved

    def top(self, values: Floats) -> Masks:
        """The mask of the layers with the largest of (n_layers,) `values`, of equal ones the first.

        By cost: layers are skipped from the largest value down until the budget is kept; then those that it does
        not need are kept again, from the smallest value up.
        """
        order = np.argsort(-values, kind="stable")
        if self.skip_num is not None:
            mask = np.zeros(self.n_layers, dtype=bool)
            mask[order[: self.skip_num]] = True
            return mask
        prefixes = np.zeros((self.n_layers + 1, self.n_layers), dtype=bool)
        for count, layer in enumerate(order):
            prefixes[count + 1 :, layer] = True
        allowed = np.flatnonzero(self.contains(prefixes))
        mask = prefixes[allowed[0]] if len(allowed) else self._largest(values)
        for layer in order[::-1]:
            if mask[layer]:
                mask[layer] = False
                mask[layer] = not self.contains(mask[None])[0]
        return mask

    def _largest(self, values: Floats) -> Masks:
        """An allowed mask where skipping in order finds none: that of the largest sum of ranks, if all are known."""
        if not self.enumerable:
            return self._full.copy()
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return self.masks[np.argmax(self.masks @ ranks)].copy()

    def sample(self, rng: np.random.Generator) -> Masks:
        """(n_layers,) a random mask: layers skipped in random order until the budget is kept."""
        return self.top(rng.random(self.n_layers))

    def mutate(self, mask: Masks, strength: int, rng: np.random.Generator) -> Masks:
        """An allowed mask that keeps up to `strength` skipped layers of `mask` and skips random others for them."""
        skipped = np.flatnonzero(mask)
        freed = rng.choice(skipped, min(strength, len(skipped)), replace=False)
        values = rng.random(self.n_layers) + np.where(mask, 2.0, 0.0)
        values[freed] -= 4.0
        return self.top(values)

    def neighbours(self, mask: Masks) -> Masks:
        """(m, n_layers): one skipped layer swapped for a kept one; by cost also one layer more or less skipped."""
        skipped, kept = np.flatnonzero(mask), np.flatnonzero(~mask)
        pairs = np.array(list(itertools.product(skipped, kept)), dtype=np.intp).reshape(-1, 2)
        if self.skip_num is None:
            pairs = np.concatenate((pairs, np.stack([np.arange(self.n_layers)] * 2, axis=1)))
        masks = np.repeat(mask[None], len(pairs), axis=0)
        for column in (0, 1):
            np.put_along_axis(masks, pairs[:, column : column + 1], ~mask[pairs[:, column : column + 1]], axis=1)
        return masks[self.contains(masks)]

    def distinct(self, n: int, draw: Callable[[], Masks], rng: np.random.Generator, seen: Container[bytes] = ()) -> Masks:
        """Distinct masks that are not `seen`.

        Args:
            n: How many are wanted.
            draw: Gives one allowed mask at a time.
            rng: Draws what `draw` does not find.
            seen: `mask.tobytes()` of masks that must not come.

        Returns:
            (m, n_layers) masks from `draw` and, where 200 draws of it do not give enough, any others; m < n where no
            more exist (or, where masks are too many to list, none were found).
        """
        found: dict[bytes, Masks] = {}
        for source in (draw, lambda: self._any(rng)):
            for _ in range(_DRAWS if source is draw or not self.enumerable else 0):
                if len(found) >= n:
                    break
                mask = source()
                if mask.tobytes() not in seen:
                    found.setdefault(mask.tobytes(), mask)
        if len(found) < n and self.enumerable:
            others = [mask for mask in self.masks if mask.tobytes() not in seen and mask.tobytes() not in found]
            for index in rng.permutation(len(others))[: n - len(found)]:
                found[others[index].tobytes()] = others[index]
        return np.array(list(found.values()), dtype=bool).reshape(len(found), self.n_layers)

    def _any(self, rng: np.random.Generator) -> Masks:
        """A random mask that may skip more than a budget by cost needs."""
        mask = self.sample(rng)
        if self.skip_num is not None:
            return mask
        more = mask | (rng.random(self.n_layers) < rng.random())
        return more if self.contains(more[None])[0] else mask


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_function(n_layers: int, savings: Savings | Floats | None) -> Savings:
    if callable(savings):
        return savings
    if savings is None:
        raise ValueError("macs_saved needs to know what masks save: give savings, (n_layers,) shares or a function of masks")
    shares = np.asarray(savings, dtype=np.float64)
    if shares.shape != (n_layers,):
        raise ValueError(
            f"savings of shape {shares.shape}; give ({n_layers},), the share that each layer saves, or a function"
        )
    return lambda masks: masks @ shares
