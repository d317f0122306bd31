"""Images to METER's and ViLT's pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD, meter_transform
from das_gym.models.vilt.inputs import vilt_shape, vilt_transform


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """The formula in float64, channels first."""
    return ((pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("size", "resized", "box"),
    [
        # width, height; the shorter side becomes 10, the longer int(10 * long / short); the crop is centred
        ((20, 40), (10, 20), (0, 5, 10, 15)),
        ((47, 20), (23, 10), (6, 0, 16, 10)),  # 23.5 -> 23; an offset of 6.5 rounds to 6, the even number
        ((5, 8), (10, 16), (0, 3, 10, 13)),  # smaller images grow
    ],
)
def test_resize_and_centre_crop(size, resized, box):
    image = noise(*size)
    expected = np.asarray(image.resize(resized, Image.Resampling.BICUBIC).crop(box))
    np.testing.assert_allclose(meter_transform(image, 10).numpy(), normalised(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1000, 4), (3, 700)])
def test_middle_of_a_strip_equals_that_of_the_full_strip(size):
    image, side = noise(*size).point(lambda value: 96 + value // 4), 24  # so that nothing overshoots and is cut
    long = side * max(size) // min(size)
    whole = image.resize((long, side) if size[0] > size[1] else (side, long), Image.Resampling.BICUBIC)
    start = round((long - side) / 2)
    box = (start, 0, start + side, side) if size[0] > size[1] else (0, start, side, start + side)
    expected = normalised(np.asarray(whole.crop(box)))
    levels = 2 / 255 / min(CLIP_STD)  # PIL rounds between its two passes, and chooses which comes first
    np.testing.assert_allclose(meter_transform(image, side).numpy(), expected, rtol=0, atol=1.01 * levels)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Worked out by hand for size 384: the longer side is at most int(384 * 1333 / 800) = 639
        ((640, 480), (512, 384)),
        ((427, 640), (384, 576)),  # 575.55 is rounded to 576 before it is rounded down to patches
        ((384, 640), (352, 608)),  # the bound makes it 383 x 639
        ((3000, 100), (608, 32)),  # 639 x 21: one patch at least
    ],
)
def test_vilts_sides(given, expected):
    assert vilt_shape(given, 384) == expected
    width, height = expected
    assert vilt_transform(noise(*given), 384).shape == (3, height, width)


def test_vilts_pixels_by_hand():
    """The whole image is resampled, bicubically."""
    pixels = vilt_transform(noise(100, 130), 96, patch=16)
    image = np.asarray(noise(100, 130).resize((96, 112), Image.Resampling.BICUBIC), dtype=np.float64)
    np.testing.assert_allclose(pixels.numpy(), (image / 127.5 - 1).transpose(2, 0, 1), rtol=0, atol=1e-5)
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.float32, True)


def test_vilt_pixels_never_look_like_padding():
    gray = np.stack(np.meshgrid([127, 128], [127, 128], [127, 128]), -1).reshape(2, 4, 3).astype(np.uint8)
    image = Image.fromarray(gray.repeat(16, 0).repeat(16, 1))
    assert (vilt_transform(image, 32, 16).sum(0) != 0).all()


@pytest.mark.parametrize("transform", [meter_transform, vilt_transform])
def test_sizes_below_a_patch_are_rejected(transform):
    with pytest.raises(ValueError, match="`size`"):
        transform(noise(8, 8), 16, 32)
