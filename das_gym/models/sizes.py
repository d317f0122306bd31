"""What the config of a model may say."""

from __future__ import annotations

import dataclasses
from typing import Any

MAX_LAYERS = 512
"""More than any model has: a config that says more is damaged, and would build for ever."""

MAX_SIZE = 2**24
"""Of widths and vocabularies."""

MAX_SIDE, MAX_PATCHES = 2**13, 2**9
"""Pixels and patches a side of the pictures that a model reads."""

MAX_BOTTLENECK = 2**14
"""Width of adapters, which are made where a file has none."""

_HIGHEST = {"image_size": MAX_SIDE, "position_grid": MAX_PATCHES}
_HIGHEST |= dict.fromkeys(("bottleneck", "skip_bottleneck"), MAX_BOTTLENECK)


def check_sizes(config: Any, may_be_zero: tuple[str, ...] = (), may_be_none: tuple[str, ...] = ()) -> None:
    """Refuse numbers that no model has.

    Args:
        config: A dataclass of numbers. Fields with a whole default are whole, others are shares or small numbers, 0..1.
        may_be_zero: Fields that may be 0; other whole numbers are 1 or more.
        may_be_none: Fields that may be None, and are whole otherwise.

    Raises:
        ValueError: names the field and what it may be.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if value is None and name in may_be_none:
            continue
        if isinstance(field.default, float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value <= 1):
                raise ValueError(f"{name}={value!r} is not allowed; use 0..1")
            continue
        low, high = int(name not in may_be_zero), _highest(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}={value!r} is not allowed; use a whole number, {low}..{high}")


def _highest(name: str) -> int:
    if name.endswith("layers"):
        return MAX_LAYERS
    return _HIGHEST.get(name, MAX_SIZE)


def check_patches(image_size: int, patch_size: int) -> None:
    """Refuse pictures that do not come to whole patches, or come to more than any model reads.

    Raises:
        ValueError: says what they come to.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
    if image_size // patch_size > MAX_PATCHES:
        raise ValueError(f"image_size={image_size} with patch_size={patch_size} has more than {MAX_PATCHES} patches a side")
