"""From an image to the pixels that METER reads.

Exported folders carry a copy of this file, so it imports nothing of das_gym.
"""

import numpy as np
import torch
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue over CLIP's training images, 0..1. Source: CLIP (arXiv 2103.00020), released code."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue over CLIP's training images. Source: as CLIP_MEAN."""

STRIP_ASPECT = 16
"""Longer over shorter side from which on only the middle of an image is resampled."""


def _centre(image: Image.Image, size: int) -> Image.Image:
    """Return the central square of the image with its shorter side at `size`, the other rounded down as in torchvision."""
    width, height = image.size
    shape = (size, size * height // width) if width <= height else (size * width // height, size)
    left = round((shape[0] - size) / 2)
    top = round((shape[1] - size) / 2)
    square = (left, top, left + size, top + size)
    if min(width, height) == size:
        return image.crop(square)
    if max(shape) < STRIP_ASPECT * size:
        return image.resize(shape, Image.Resampling.BICUBIC).crop(square)
    # The same up to rounding. The whole resampled strip can take gigabytes.
    x = width / shape[0]
    y = height / shape[1]
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def meter_transform(image: Image.Image, size: int, patch: int = 1) -> torch.Tensor:
    """Return (3, size, size) float32: shorter side to `size` (bicubic), centre crop, CLIP's mean and standard deviation.

    transformers' image processor for CLIP rounds odd crops down. torchvision, and so METER, rounds to even.

    Args:
        image: An image of any size and mode.
        size: Side of the result in pixels, a multiple of `patch`. An image of that size is not resampled.
        patch: Side of the model's patches in pixels.

    Source: METER (arXiv 2111.02387), section 4, and CLIP (arXiv 2103.00020).
    """
    if size < 1 or patch < 1 or size % patch:
        raise ValueError(f"invalid `size`: got {size} pixels, expected a positive multiple of the patch size, {patch}")
    pixels = np.array(_centre(image.convert("RGB"), size), dtype=np.float32)
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std).contiguous()
