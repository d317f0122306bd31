"""Images to METER's and ViLT's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from das_gym.data.transforms import CLIP_MEAN, CLIP_STD, load_image, meter_transform, vilt_shape, vilt_transform


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """The formula in float64, channels first."""
    return ((pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "RGB"])
def test_load_image_gives_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    noise(20, 10).convert(mode).save(path)
    image = load_image(str(path))
    assert (image.mode, image.size) == ("RGB", (20, 10))


def test_a_jpeg_may_call_itself_png(tmp_path: Path):
    noise(20, 10).save(tmp_path / "image.png", format="JPEG")
    assert load_image(tmp_path / "image.png").size == (20, 10)


def test_16_bit_gray_keeps_its_shades(tmp_path: Path):
    shades = np.linspace(0, 65535, 200, dtype=np.uint16).reshape(10, 20)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "deep.png"))[..., 1], shades >> 8)


def test_a_palette_with_alpha_does_not_warn(tmp_path: Path):
    noise(20, 10).convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert load_image(tmp_path / "palette.png").mode == "RGB"


def test_load_image_does_not_turn_by_exif(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    noise(20, 10).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 10)


@pytest.mark.parametrize("kept", [0, 3, 100, 2000])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, kind: str, kept: int):
    path = tmp_path / f"COCO_val2014_000000000042.{kind}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=r"the image .*COCO_val2014_000000000042\.\w+ cannot be read .*replace it with a whole copy"
    ) as caught:
        load_image(path)
    assert caught.value.__cause__ is not None


def test_text_and_folders_are_no_images(tmp_path: Path):
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match=r"page\.jpg cannot be read \(UnidentifiedImageError"):
        load_image(tmp_path / "page.jpg")
    with pytest.raises(ValueError, match=r"cannot be read \(IsADirectoryError|cannot be read \(PermissionError"):
        load_image(tmp_path)


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise(64, 64).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 3)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read \(DecompressionBombError"):
        load_image(tmp_path / "bomb.png")


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*gone\.jpg; put the file there"):
        load_image(tmp_path / "gone.jpg")


def test_an_image_of_the_right_size_is_only_normalised():
    image = noise(96, 96)
    pixels = meter_transform(image, 96)
    assert (pixels.shape, pixels.dtype) == ((3, 96, 96), torch.float32)
    assert pixels.is_contiguous()
    np.testing.assert_allclose(pixels.numpy(), normalised(np.asarray(image)), rtol=0, atol=1e-6)


def test_black_and_white_by_hand():
    black, white = (meter_transform(Image.new("RGB", (4, 4), (v, v, v)), 4)[:, 0, 0].tolist() for v in (0, 255))
    assert black == pytest.approx([-1.792263, -1.752097, -1.480220], abs=1e-5)
    assert white == pytest.approx([1.930336, 2.074884, 2.145897], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "resized", "box"),
    [
        # width, height; the shorter side becomes 10, the longer int(10 * long / short); the crop is centred
        ((20, 40), (10, 20), (0, 5, 10, 15)),
        ((47, 20), (23, 10), (6, 0, 16, 10)),  # 23.5 -> 23; an offset of 6.5 rounds to 6, the even number
        ((20, 50), (10, 25), (0, 8, 10, 18)),  # 7.5 -> 8
        ((5, 8), (10, 16), (0, 3, 10, 13)),  # smaller pictures grow
        ((33, 33), (10, 10), (0, 0, 10, 10)),
    ],
)
def test_resize_and_centre_crop(size: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]):
    image = noise(*size)
    expected = np.asarray(image.resize(resized, Image.Resampling.BICUBIC).crop(box))
    np.testing.assert_allclose(meter_transform(image, 10).numpy(), normalised(expected), rtol=0, atol=1e-6)


def test_a_fitting_shorter_side_is_cropped_and_not_resampled():
    image = noise(31, 10)
    expected = normalised(np.asarray(image)[:, 10:20])  # (31 - 10) / 2 = 10.5 -> 10
    np.testing.assert_allclose(meter_transform(image, 10).numpy(), expected, rtol=0, atol=1e-6)


def test_gray_images_get_three_channels():
    assert meter_transform(Image.new("L", (12, 12), 128), 12).shape == (3, 12, 12)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size: int):
    with pytest.raises(ValueError, match=rf"size={size} pixels; pass the side of the model's image, 1 or more"):
        meter_transform(noise(8, 8), size)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Worked out by hand for size 384: the longer side is at most int(384 * 1333 / 800) = 639
        ((384, 384), (384, 384)),
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((500, 375), (512, 384)),
        ((427, 640), (384, 576)),  # 575.55 is rounded to 576 before it is rounded down to patches
        ((384, 640), (352, 608)),  # the bound makes it 383 x 639
        ((3000, 100), (608, 32)),  # 639 x 21: one patch at least
        ((10, 10), (384, 384)),
    ],
)
def test_vilts_sides(given: tuple[int, int], expected: tuple[int, int]):
    assert vilt_shape(given, 384) == expected
    width, height = expected
    assert vilt_transform(noise(*given), 384).shape == (3, height, width)


def test_vilts_sides_by_the_patch_of_a_small_model():
    assert vilt_shape((100, 130), 96, patch=16) == (96, 112)  # 124.8 -> 125 -> 7 patches
    assert vilt_transform(noise(100, 130), 96, patch=16).shape == (3, 112, 96)


def test_vilts_pixels_by_hand():
    image = noise(64, 64)
    pixels = vilt_transform(image, 64, patch=16)
    expected = (np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=0, atol=1e-6)
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.float32, True)


def test_vilt_resamples_the_whole_image_bicubically():
    image = noise(100, 130)
    resized = np.asarray(image.resize((96, 112), Image.Resampling.BICUBIC), dtype=np.float32)
    np.testing.assert_allclose(vilt_transform(image, 96, 16).numpy(), (resized / 127.5 - 1).transpose(2, 0, 1), atol=1e-5)


def test_no_pixel_of_vilts_looks_like_padding():
    gray = np.stack(np.meshgrid([127, 128], [127, 128], [127, 128]), -1).reshape(2, 4, 3).astype(np.uint8)
    image = Image.fromarray(gray.repeat(16, 0).repeat(16, 1))
    assert (vilt_transform(image, 32, 16).sum(0) != 0).all()


@pytest.mark.parametrize(("size", "patch"), [(0, 1), (16, 32), (32, 0)])
def test_vilt_refuses_sizes_below_a_patch(size: int, patch: int):
    with pytest.raises(ValueError, match=rf"size={size} pixels"):
        vilt_transform(noise(8, 8), size, patch)
