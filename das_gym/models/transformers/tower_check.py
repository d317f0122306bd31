"""What is particular about a vision tower, found out by trying it: which layers are read, and which can be deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from das_gym.models.transformers import features, stack
from das_gym.models.transformers.pruning import apart, delete_vision_layers, shell, what_differs
from das_gym.models.transformers.tower import Tower, TowerTraits

UNREAD = "nobody reads what it gives"
TIED = "without it the model reads other layers, or would not load again as it was"


class TowerCheck:
    """The vision tower of one model under examination.

    Args:
        model: The model of transformers.
        tolerance: How far features may be apart, as a share of their largest.
    """

    def __init__(self, model: Any, tolerance: float) -> None:
        self.model = model
        self.name = type(model).__name__
        self.tolerance = tolerance

    def traits(self, given: Mapping[str, Tensor]) -> TowerTraits:
        """What skipping its layers has to know.

        Args:
            given: Pixels and sizes of a picture.

        Raises:
            ValueError: its layers cannot be skipped; the text says why.
        """
        reads, count = self.reads(given), len(stack.find_tower(self.model).layers)
        last = max(reads)
        found = TowerTraits(reads, dict.fromkeys(range(last + 1, count), UNREAD))
        whole = self._replayed(found, given, ())
        if not self._same(whole, features.seen(self.model, given)):
            raise ValueError("they do not give what its own forward gives")
        tied = [place for place in range(last + 1) if not self._is_deleted_alike(found, given, (place,))]
        free = [place for place in range(last + 1) if place not in tied]
        if not free:
            raise ValueError(f"not one of them can be deleted: {TIED}")
        for gone in apart(free):
            if len(gone) < count and not self._is_deleted_alike(found, given, gone):
                raise ValueError(f"without several of them at a time, such as {gone}, {TIED.partition('the')[2].strip()}")
        return TowerTraits(reads, {**found.protected, **dict.fromkeys(tied, TIED)})

    def reads(self, given: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Positions of the layers whose outputs make a difference by themselves.

        Raises:
            ValueError: there is none.
        """
        layers = stack.find_tower(self.model)
        stack.note_outputs(layers, partial(features.seen, self.model, given))
        count = len(layers.layers)
        tower = Tower(self.model, TowerTraits(()))
        embedded = tower.record(given).embedded
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(embedded.shape, generator=generator, dtype=torch.float64).to(embedded)
        outputs = dict.fromkeys(range(count), embedded)
        plain = tower.seen(given, outputs)
        other = embedded + noise * (embedded.std() + 1)
        found = tuple(n for n in range(count) if not self._same(tower.seen(given, {**outputs, n: other}), plain))
        if not found:
            raise ValueError("nobody reads what its layers give")
        return found

    def _replayed(self, traits: TowerTraits, given: Mapping[str, Tensor], gone: Sequence[int]) -> dict[str, Any]:
        """What the model makes of a picture when some layers are passed by."""
        tower = Tower(self.model, traits)
        hidden, pictures, places = tower.begin([given])
        for place in range(max(traits.reads) + 1):
            run = None if place in gone else partial(stack.run_layer, tower.stack.layers[place])
            hidden = tower.step(hidden, pictures, place, run)
        (seen,) = tower.features(hidden, pictures, places, [given])
        return seen

    def _is_deleted_alike(self, traits: TowerTraits, given: Mapping[str, Tensor], gone: Sequence[int]) -> bool:
        """Whether the model without some layers gives what it gives when they are passed by, and loads again as it is."""
        smaller = shell(self.model)
        try:
            delete_vision_layers(smaller, gone)
            if what_differs(smaller) is not None:
                return False
            return self._same(features.seen(smaller, given), self._replayed(traits, given, gone))
        except Exception:  # whatever transformers raises: it cannot do without them
            return False

    def _same(self, one: Any, other: Any) -> bool:
        """Whether two structures of tensors are equal up to rounding."""
        ones, others = tree_leaves(one), tree_leaves(other)
        if len(ones) != len(others):
            return False
        return all(self._close(*pair) for pair in zip(ones, others, strict=True) if isinstance(pair[0], Tensor))

    def _close(self, one: Tensor, other: Any) -> bool:
        if not isinstance(other, Tensor) or one.shape != other.shape:
            return False
        scale = float(other.double().abs().max()) + 1e-6 if other.numel() else 1.0
        return not other.numel() or float((one.double() - other.double()).abs().max()) <= self.tolerance * scale
