"""RandAugment, with which ViLT and METER fine-tune."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_OPS, MAGNITUDE = 2, 9
"""Operations an image, and their strength on a scale of 0..30. Source: ViLT (arXiv 2102.03334), section 4.1; METER alike."""


def randaugment(image: Image, seed: int, num_ops: int = NUM_OPS, magnitude: int = MAGNITUDE) -> Image:
    """The image changed at random by torchvision's RandAugment; it keeps its size.

    The operations are torchvision's, which are nearly but not all those of ViLT's and METER's code.

    Args:
        image: Mode RGB.
        seed: Draws operations and signs, 0 or more; the same seed changes the image in the same way. Torch's own random
            numbers go on as if nothing had been drawn. See `augmentation_seed`.
        num_ops: Operations, one after the other; 0 or more.
        magnitude: Their strength, 0..30.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: A number is out of its range.
    """
    if num_ops < 0 or not 0 <= magnitude <= 30 or seed < 0:
        raise ValueError(
            f"num_ops={num_ops}, magnitude={magnitude}, seed={seed}; num_ops and seed are 0 or more, magnitude is 0..30"
        )
    augment = _augment(num_ops, magnitude)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return augment(image)


def augmentation_seed(seed: int, step: int, key: str) -> int:
    """A seed for `randaugment`, 0..2^63 - 1: another one for each run, step and image.

    Args:
        seed: The run's.
        step: Whatever counts how often an image was used, such as the training step.
        key: The image's or the example's.
    """
    digest = hashlib.blake2b(f"{seed} {step} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=8)
def _augment(num_ops: int, magnitude: int) -> Any:
    try:
        from torchvision.transforms import RandAugment
    except ImportError as error:
        raise ImportError("RandAugment needs torchvision: install it with pip install 'das_gym[augment]'") from error
    return RandAugment(num_ops, magnitude)
