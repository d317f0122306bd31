"""From a picture to the pixels that METER reads."""

from __future__ import annotations

import torch
from PIL import Image

from das_gym.models.inputs import check_size, pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue over CLIP's training images, 0..1. Source: CLIP (arXiv 2103.00020), released code."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue over CLIP's training images. Source: as CLIP_MEAN."""

STRIP = 16
"""Longer over shorter side from which on only the middle of an image is resampled."""


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The central square of the image with its shorter side at `size`, the other rounded down, as torchvision has it."""
    width, height = image.size
    shape = (size, size * height // width) if width <= height else (size * width // height, size)
    left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    square = (left, top, left + size, top + size)
    if min(width, height) == size:
        return image.crop(square)
    if max(shape) < STRIP * size:
        return image.resize(shape, Image.Resampling.BICUBIC).crop(square)
    # The same up to rounding, without the whole strip, which can take gigabytes
    x, y = width / shape[0], height / shape[1]
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def meter_transform(image: Image.Image, size: int, patch: int = 1) -> torch.Tensor:
    """METER's input pixels: shorter side to `size` (bicubic), centre crop, CLIP's mean and standard deviation.

    Not transformers' image processor for CLIP: it rounds odd crops down where torchvision, and so METER, rounds to even,
    which shifts every pixel; elsewhere it gives the same pixels.

    Args:
        image: An image of any size and mode.
        size: Side of the result in pixels, 1 or more. An image of that size is not resampled.
        patch: Side of the model's patches in pixels; `size` is a multiple of it.

    Returns:
        (3, size, size) float32, red, green and blue; black is about -1.8 and white about 2.1.

    Raises:
        ValueError: `size` is less than 1, or no multiple of `patch`.

    Source: METER (arXiv 2111.02387), section 4, and CLIP (arXiv 2103.00020).
    """
    check_size(size)
    if patch < 1 or size % patch:
        raise ValueError(f"size={size} pixels cannot be cut into patches of {patch}; use a multiple of {patch}")
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((pixels(_centre(image.convert("RGB"), size)) - mean) / std).contiguous()
