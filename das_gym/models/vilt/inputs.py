"""From an image to the pixels that ViLT reads."""

import numpy as np
import torch
from PIL import Image

VILT_MEAN = VILT_STD = 0.5
"""Mean and standard deviation of every channel. Source: ViLT (arXiv 2102.03334), released code."""

VILT_ASPECT = 1333 / 800
"""Longer over shorter side, at most, before sides are rounded. Source: ViLT, section 4.1 (384 and 640 pixels)."""

VILT_PATCH = 32
"""Side of ViLT-B/32's patches in pixels."""


def vilt_transform(image: Image.Image, size: int, patch: int = VILT_PATCH) -> torch.Tensor:
    """Return (3, height, width) float32: shorter side `size`, longer side bounded, in whole patches; ValueError below one.

    The aspect ratio is kept up to that rounding; nothing is cut off. An image whose longer side would be more than
    `int(size * 1333 / 800)` is scaled down until it is not, and its shorter side is then less than `size`. Values are -1..1,
    and no pixel is zero in all channels, so zeros can pad it.

    Args:
        image: An image of any size and mode.
        size: Shorter side of the result in pixels, `patch` or more.
        patch: Side of the model's patches in pixels; both sides of the result are multiples of it, at least one patch.

    Source: ViLT (arXiv 2102.03334), section 4.1.
    """
    if not 1 <= patch <= size:
        raise ValueError(f"invalid `size`: got {size} pixels, expected at least one patch of {patch}")
    shape = vilt_shape(image.size, size, patch)
    rgb = image.convert("RGB")
    resized = rgb if rgb.size == shape else rgb.resize(shape, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized, dtype=np.float32)).permute(2, 0, 1) / 255
    return ((pixels - VILT_MEAN) / VILT_STD).contiguous()


def vilt_shape(shape: tuple[int, int], size: int, patch: int = VILT_PATCH) -> tuple[int, int]:
    """Return width and height in pixels that `vilt_transform` gives to an image of width and height `shape`."""
    scale = min(size / min(shape), int(VILT_ASPECT * size) / max(shape))
    width, height = (max(patch, int(side * scale + 0.5) // patch * patch) for side in shape)
    return width, height
