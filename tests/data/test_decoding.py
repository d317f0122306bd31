"""Image files to pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gym.data.decoding import decode_image, file_pixels, load_image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32), np.arange(256)),
        (np.arange(256, dtype=np.float32), np.arange(256)),
        (np.arange(256, dtype=np.int32), np.arange(256)),
        (256 * np.arange(256, dtype=np.int32), np.arange(256)),
    ],
)
def test_gray_of_32_bits_keeps_its_shades(tmp_path: Path, values: np.ndarray, expected: np.ndarray):
    """PIL alone makes it white or black."""
    Image.fromarray(values.reshape(16, 16)).save(tmp_path / "deep.tiff")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "deep.tiff"))[..., 0].ravel(), expected)


@pytest.mark.parametrize("values", [[-1.0, 5.0], [0.0, 1e6], [0.0, np.nan]])
def test_gray_of_32_bits_that_says_nothing_of_its_range_is_refused(tmp_path: Path, values: list[float]):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff cannot be read .*32-bit numbers .*save it with 8 bits a channel"):
        load_image(tmp_path / "deep.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str):
    """And not the colour that lies hidden there."""
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.convert(mode).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png"))[0].tolist() == [[255] * 3, [0] * 3]


def test_a_palette_with_alpha_does_not_warn(tmp_path: Path):
    noise(20, 10).convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)), compress_level=1)
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
        ValueError,
        match=r"the image .*COCO_val2014_000000000042\.\w+ cannot be read .*replace it with a whole copy, and a "
        r"stopped run goes on with resume=<id>, or leave its examples out with on_bad_example=skip$",
    ) as caught:
        load_image(path)
    assert caught.value.__cause__ is not None


def test_text_and_folders_are_no_images(tmp_path: Path):
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match=r"page\.jpg cannot be read \(UnidentifiedImageError"):
        load_image(tmp_path / "page.jpg")
    with pytest.raises(ValueError, match=r"cannot be read \(IsADirectoryError|cannot be read \(PermissionError"):
        load_image(tmp_path)


def test_load_image_keeps_all_of_a_turned_tiff(tmp_path: Path):
    """The oldest Pillow turns it after it has told its size."""
    picture = noise(60, 40)
    picture.save(tmp_path / "turned.tif", tiffinfo={0x0112: 6})  # by 90 degrees
    assert load_image(tmp_path / "turned.tif").tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_a_pipe_is_no_picture(tmp_path: Path):
    os.mkfifo(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"{path} cannot be read \(ValueError: {path} is a pipe or a device"):
            load_image(path)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "gif", "bmp", "webp"])
@pytest.mark.parametrize("size", [(81, 100), (101, 200)])  # PIL warns of the smaller, and refuses the larger
def test_load_image_refuses_more_pixels_than_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: tuple[int, int]
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    Image.new("L", size).save(tmp_path / f"huge.{kind}")
    with pytest.raises(ValueError, match=rf"huge\.{kind} is too large .*scale it down, or .*on_bad_example=skip"):
        load_image(tmp_path / f"huge.{kind}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / f"huge.{kind}").size == size


IPTC = b"".join(
    b"\x1c" + bytes(tag) + len(value).to_bytes(2, "big") + value
    for tag, value in [((3, 60), b"\x01\x00"), ((3, 20), b"\x0a"), ((3, 30), b"\x0a"), ((3, 120), b"\x05")]
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.mark.parametrize("content", [EPS, IPTC + b"\x1c\x08\x0a" + len(EPS).to_bytes(2, "big") + EPS], ids=["eps", "iptc"])
def test_no_program_is_run_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    """PIL gives an EPS to the first `gs` that the shell finds."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read \(UnidentifiedImageError: in none of the formats"):
        load_image(tmp_path / "a.jpg")
    assert not (tmp_path / "mark").exists()


def test_bytes_that_are_no_image_show_no_address_of_memory():
    with pytest.raises(
        ValueError, match=r"^row 3 cannot be read \(UnidentifiedImageError: in none of the formats that are read\); "
    ):
        decode_image(io.BytesIO(b"<html>"), "row 3")


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*gone\.jpg; put the file there"):
        load_image(tmp_path / "gone.jpg")


def test_pixels_by_the_header_alone(tmp_path: Path):
    Image.new("RGB", (30, 20)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:45])
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert [file_pixels(tmp_path / name) for name in ("whole.png", "cut.png")] == [600, 600]
    with pytest.raises(ValueError, match=r"the image .*none\.png cannot be read"):
        file_pixels(tmp_path / "none.png")
