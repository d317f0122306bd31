"""Limits of what the config of a model may say: a damaged or hostile one must not build a model of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

MAX_LAYERS, MAX_SIDE, MAX_PATCHES, MAX_BOTTLENECK, MAX_WIDTH = 512, 2**13, 2**9, 2**14, 2**24
"""Layers; pixels and patches a side of an image; width of adapters; widths and vocabularies."""


def check_sizes(config: Any, head_fields: Mapping[str, str]) -> None:
    """Check a config, a dataclass of numbers; `head_fields` are names of numbers of heads, and of the width of each."""
    for each in dataclasses.fields(config):
        name, value, low, high = each.name, getattr(config, each.name), 1, MAX_WIDTH
        if name.endswith("layers"):
            high = MAX_LAYERS
        elif name.endswith("bottleneck"):
            low, high = 0, MAX_BOTTLENECK
        elif isinstance(each.default, float):
            low, high = 0, 1
        else:
            high = {"image_size": MAX_SIDE, "position_grid": MAX_PATCHES}.get(name, MAX_WIDTH)
        if value is not None and not low <= value <= high:
            raise ValueError(f"invalid `{name}`: got {value}, expected {low}..{high}")
    for name, width_name in head_fields.items():
        heads, width = getattr(config, name), getattr(config, width_name)
        if width % heads:
            raise ValueError(f"invalid `{name}`: got {heads}, expected a divisor of {width_name}={width}")
    size, patch = config.image_size, config.patch_size
    if size % patch or size // patch > MAX_PATCHES:
        raise ValueError(f"invalid `image_size`: got {size}, expected a multiple of {patch} up to {MAX_PATCHES * patch}")
