"""RandAugment, with which ViLT and METER fine-tune."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_OPS = 2
MAGNITUDE = 9
"""Operations per image, and their strength, 0..30. Source: ViLT (arXiv 2102.03334), section 4.1; METER alike."""


def randaugment(image: Image, seed: int, num_ops: int = NUM_OPS, magnitude: int = MAGNITUDE) -> Image:
    """Return the image changed by torchvision's RandAugment; it keeps its size.

    torchvision's operations are nearly, but not all, those of the code of ViLT and METER. The seed, see `augmentation_seed`,
    draws operations and signs; torch's global generator is not advanced.
    """
    augment = _augment(num_ops, magnitude)
    with torch.random.fork_rng(devices=[]):  # RandAugment takes no generator
        torch.manual_seed(seed)
        return augment(image)


def augmentation_seed(seed: int, step: int, key: str) -> int:
    """Return a seed for `randaugment`, 0..2^63 - 1, from the run's seed, the training step and the key of the image."""
    digest = hashlib.blake2b(f"{seed} {step} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=8)
def _augment(num_ops: int, magnitude: int) -> Any:
    try:
        from torchvision.transforms import RandAugment
    except ImportError as error:
        raise ImportError("RandAugment needs torchvision: run pip install 'das_gym[augment]'") from error
    return RandAugment(num_ops, magnitude)
