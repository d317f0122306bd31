"""From an image file to the pixels that METER reads."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue over CLIP's training images, 0..1. Source: CLIP (arXiv 2103.00020), released code."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue over CLIP's training images. Source: as CLIP_MEAN."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises for a file that is not an image, is cut short, is damaged, or is far too large."""


def load_image(path: str | Path) -> Image.Image:
    """Read an image file, fully decoded. Orientation is as stored: EXIF rotation is not applied.

    Args:
        path: A file in any format that PIL reads.

    Returns:
        The image, mode RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, corrupt or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}; put the file there, or take its questions out") from None
    except _UNREADABLE as error:
        raise ValueError(
            f"the image {path} cannot be read ({type(error).__name__}: {error}); the file is truncated, corrupt or no "
            "image: replace it with a whole copy, or take its questions out of the questions and annotations files"
        ) from error


def _resized(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size`, the other rounded down, as torchvision's Resize has it."""
    width, height = image.size
    if min(width, height) == size:
        return image
    shape = (size, size * height // width) if width <= height else (size * width // height, size)
    return image.resize(shape, Image.Resampling.BICUBIC)


def meter_transform(image: Image.Image, size: int) -> torch.Tensor:
    """METER's input pixels: shorter side to `size` (bicubic), centre crop, CLIP's mean and standard deviation.

    Args:
        image: An image of any size and mode.
        size: Side of the result in pixels, 1 or more. An image of that size is not resampled.

    Returns:
        (3, size, size) float32, red, green and blue; black is about -1.8 and white about 2.1.

    Raises:
        ValueError: `size` is less than 1.

    Source: METER (arXiv 2111.02387), section 4, and CLIP (arXiv 2103.00020).
    """
    if size < 1:
        raise ValueError(f"size={size} pixels; pass the side of the model's image, 1 or more")
    resized = _resized(image.convert("RGB"), size)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    cropped = resized.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(cropped, dtype=np.float32)).permute(2, 0, 1) / 255
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous()
