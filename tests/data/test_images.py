"""Decoding of image files, sound and damaged."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from das_gym.data.images import decode_image, load_image

SIZE = (160, 120)


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image | None = None, **settings) -> bytes:
    file = io.BytesIO()
    (scene() if image is None else image).save(file, settings.pop("format", "JPEG"), **settings)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "RGB"])
def test_load_image_returns_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    scene().convert(mode).save(path)
    image = load_image(str(path))
    assert (image.mode, image.size) == ("RGB", SIZE)


def test_load_image_ignores_suffix_and_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    scene().save(tmp_path / "turned.png", format="JPEG", exif=exif)
    assert load_image(tmp_path / "turned.png").size == SIZE
    scene().save(tmp_path / "turned.tif", tiffinfo={0x0112: 6})  # which PIL turns by itself
    assert load_image(tmp_path / "turned.tif").tobytes() == scene().transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("values", [np.arange(256, dtype=np.int32), 256 * np.arange(256, dtype=np.uint16)])
def test_load_image_scales_gray_of_16_bits(tmp_path, values):
    Image.fromarray(values.reshape(16, 16)).save(tmp_path / "deep.tiff")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "deep.tiff"))[..., 0].ravel(), np.arange(256))
    Image.fromarray(values.reshape(16, 16).astype(np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff cannot be read .*32-bit floats"):
        load_image(tmp_path / "deep.tiff")


@pytest.mark.parametrize("value", [70_000, -5])
def test_load_image_rejects_gray_beyond_16_bits(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match="out of range"):  # a cast to 8 bits would wrap around
        load_image(tmp_path / "deep.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_load_image_shows_transparent_pixels_white(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.convert(mode).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png"))[0].tolist() == [[255] * 3, [0] * 3]


def test_load_image_rejects_what_is_no_image(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "page.jpg", tmp_path, tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path} cannot be read"):
            load_image(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg does not exist"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"^row 3 cannot be read \(UnidentifiedImageError: not an image"):
        decode_image(io.BytesIO(b"<html>"), "row 3")


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("size", [(81, 100), (101, 200)])  # PIL warns about the smaller, and rejects the larger
def test_load_image_limits_the_pixels(tmp_path, monkeypatch, kind, size):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    Image.new("L", size).save(tmp_path / f"huge.{kind}")
    with pytest.raises(ValueError, match=rf"huge\.{kind} is too large"):
        load_image(tmp_path / f"huge.{kind}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / f"huge.{kind}").size == size


def test_most_damaged_jpegs_are_rejected():
    """Of 100 images with 64 random bytes nine in ten; PIL alone rejects a quarter."""
    rng, rejected = np.random.default_rng(0), 0
    for number in range(100):
        content = jpeg(scene(number), quality=90)
        place = int(rng.integers(content.index(b"\xff\xda") + 14, len(content) - 66))
        try:
            decode_image(io.BytesIO(content[:place] + rng.bytes(64) + content[place + 64 :]), "a")
        except ValueError:
            rejected += 1
    assert rejected >= 85


SOUND = {
    "progressive": lambda: jpeg(progressive=True),
    "cmyk": lambda: jpeg(scene().convert("CMYK")),
    "half a profile": lambda: jpeg(icc_profile=bytes(300)).replace(b"ICC_PROFILE\x00\x01\x01", b"ICC_PROFILE\x00\x02\x02"),
    "trailing bytes": lambda: jpeg() + b"\xffrubbish" * 100,
    "two images": lambda: jpeg(format="MPO", save_all=True, append_images=[scene(1)]),
    "restart markers": lambda: jpeg(restart_marker_blocks=3),
    "4:1:1": lambda: simplejpeg.encode_jpeg(np.array(scene()), colorsubsampling="411"),
    "fill bytes": lambda: jpeg()[:-2] + b"\xff\xff\xff\xff\xd9",
    "padding": lambda: jpeg()[:-2] + b"\x00\x00\x00\xff\xd9",
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_jpegs_of_odd_kinds_are_read(kind):
    assert decode_image(io.BytesIO(SOUND[kind]()), "a").mode == "RGB"
