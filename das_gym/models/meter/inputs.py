"""From a picture to the pixels that METER and ViLT read."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue over CLIP's training images, 0..1. Source: CLIP (arXiv 2103.00020), released code."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue over CLIP's training images. Source: as CLIP_MEAN."""

VILT_MEAN = VILT_STD = 0.5
"""Mean and standard deviation of every channel. Source: ViLT (arXiv 2102.03334), released code."""

VILT_ASPECT = 1333 / 800
"""Longer over shorter side, at most, before sides are rounded. Source: ViLT, section 4.1 (384 and 640 pixels)."""

VILT_PATCH = 32
"""Side of ViLT-B/32's patches in pixels."""

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
    _check_size(size)
    if patch < 1 or size % patch:
        raise ValueError(f"size={size} pixels cannot be cut into patches of {patch}; use a multiple of {patch}")
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((_pixels(_centre(image.convert("RGB"), size)) - mean) / std).contiguous()


def vilt_transform(image: Image.Image, size: int, patch: int = VILT_PATCH) -> torch.Tensor:
    """ViLT's input pixels: shorter side to `size`, longer side bounded, both rounded down to whole patches.

    The aspect ratio is kept up to that rounding; nothing is cut off. An image whose longer side would be more than
    `int(size * 1333 / 800)` is scaled down until it is not, and its shorter side is then less than `size`.

    Args:
        image: An image of any size and mode.
        size: Shorter side of the result in pixels, `patch` or more.
        patch: Side of the model's patches in pixels; both sides of the result are multiples of it, at least one patch.

    Returns:
        (3, height, width) float32, red, green and blue, -1..1. No pixel is zero in all channels, so zeros can pad it.

    Raises:
        ValueError: `size` is less than one patch.

    Source: ViLT (arXiv 2102.03334), section 4.1.
    """
    _check_size(size)
    if not 1 <= patch <= size:
        raise ValueError(f"size={size} pixels with patch={patch}; a patch is 1 pixel or more, and an image at least a patch")
    shape = vilt_shape(image.size, size, patch)
    rgb = image.convert("RGB")
    resized = rgb if rgb.size == shape else rgb.resize(shape, Image.Resampling.BICUBIC)
    return ((_pixels(resized) - VILT_MEAN) / VILT_STD).contiguous()


def vilt_shape(shape: tuple[int, int], size: int, patch: int = VILT_PATCH) -> tuple[int, int]:
    """Width and height in pixels that `vilt_transform` gives to an image of width and height `shape`."""
    scale = min(size / min(shape), int(VILT_ASPECT * size) / max(shape))
    width, height = (max(patch, int(side * scale + 0.5) // patch * patch) for side in shape)
    return width, height


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size={size} pixels; pass the side of the model's image, 1 or more")


def _pixels(image: Image.Image) -> torch.Tensor:
    """(3, height, width) float32, 0..1."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
