"""Image files to pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from das_gym.data import decoding
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


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL refuses 2 x 1,000 pixels; here JPEGs above 1,000 are scaled down, and 8,000 are too many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(decoding, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(decoding, "SHORT_SIDE", 10)
    monkeypatch.setattr(decoding, "MAX_PIXELS", dict.fromkeys(decoding.MAX_PIXELS, 8000))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(("size", "loaded"), [((40, 24), (40, 24)), ((80, 90), (10, 12)), ((133, 49), (34, 13))])
def test_a_large_jpeg_is_scaled_down_and_does_not_warn(tmp_path: Path, size: tuple[int, int], loaded: tuple[int, int]):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "large.jpg")
    image = load_image(tmp_path / "large.jpg")
    assert (image.mode, image.size) == ("RGB", loaded)
    np.testing.assert_allclose(np.asarray(image), np.broadcast_to((200, 100, 50), (*loaded[::-1], 3)), atol=2)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["png", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_a_large_picture_of_another_format_is_averaged_over_squares(tmp_path: Path, kind: str, mode: str):
    picture = noise(61, 100).convert(mode)
    picture.save(tmp_path / f"large.{kind}")
    assert load_image(tmp_path / f"large.{kind}").tobytes() == picture.convert("RGB").reduce(3).tobytes()


@pytest.mark.parametrize("large", [100, 10_000])
def test_a_turned_tiff_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int):
    """The oldest Pillow turns it after it has told its size."""
    monkeypatch.setattr(decoding, "LARGE_PIXELS", large)
    picture = noise(60, 40)
    picture.save(tmp_path / "turned.tif", tiffinfo={0x0112: 6})  # by 90 degrees
    assert load_image(tmp_path / "turned.tif").tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_picture_that_unpacks_to_a_gigabyte(tmp_path: Path):
    """A palette with alpha, converted whole, took nine bytes a pixel; 16,384 x 16,384 of them in a megabyte, 2.4 GB."""
    code = """
import sys
from pathlib import Path
from PIL import Image
from das_gym.data.decoding import load_image
if sys.argv[1] == "write":
    picture = Image.new("P", (9500, 9500))
    picture.putpalette([0, 9, 18] * 256)
    picture.save(sys.argv[2], transparency=bytes(range(256)), compress_level=1)
else:
    size = load_image(sys.argv[2]).size
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(size, int(peak.split()[1]) // 1024)  # of this program alone: getrusage counts from before it was begun
"""
    written = [sys.executable, "-c", code, "write", str(tmp_path / "bomb.png")]
    subprocess.run(written, check=True, capture_output=True)
    done = subprocess.run([*written[:3], "read", written[4]], check=True, capture_output=True, text=True)
    assert (tmp_path / "bomb.png").stat().st_size < 2**20
    size, _, megabytes = done.stdout.rpartition(" ")
    assert size == "(4750, 4750)"
    assert int(megabytes) < 450


def test_a_pipe_is_no_picture(tmp_path: Path):
    os.mkfifo(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"{path} cannot be read \(OSError: it is a pipe or a device, not a file\)"):
            load_image(path)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(("kind", "most"), [("png", 8000), ("jpg", 8000), ("tif", 1000), ("gif", 1000)])
def test_a_picture_that_is_too_large_says_how_large_it_may_be(tmp_path: Path, kind: str, most: int):
    Image.new("L", (81, 100)).save(tmp_path / f"huge.{kind}")
    with pytest.raises(
        ValueError, match=rf"huge\.{kind} has 81 x 100 pixels, more than {most}; scale it down, or .*on_bad_example=skip"
    ):
        load_image(tmp_path / f"huge.{kind}")


@pytest.mark.parametrize("kind", ["jp2", "webp", "avif", "progressive"])
def test_what_is_decoded_whole_may_have_fewer_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """The largest that are allowed took 1.5 to 3 GB."""
    path = tmp_path / f"a.{'jpg' if kind == 'progressive' else kind}"
    if path.suffix not in Image.registered_extensions():
        pytest.skip(f"this pillow writes no {kind}")
    noise(40, 30).save(path, **({"progressive": True} if kind == "progressive" else {}))
    assert load_image(path).size == (40, 30)
    name = {"jp2": "JPEG2000", "progressive": decoding.PROGRESSIVE}.get(kind, kind.upper())
    assert decoding.MAX_PIXELS[name] <= 2**27
    monkeypatch.setitem(decoding.MAX_PIXELS, name, 1000)
    with pytest.raises(ValueError, match=r"has 40 x 30 pixels, more than 1000; scale it down"):
        load_image(path)


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


def test_a_format_that_somebody_registers_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def theirs(file: BinaryIO, name: str) -> Image.Image:
        del name
        return Image.new("RGB", (3, 2)) if file.read(4) == b"mine" else None

    Image.init()
    monkeypatch.setitem(Image.OPEN, "MINE", (theirs, lambda prefix: prefix.startswith(b"mine")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "MINE"])
    (tmp_path / "a.mine").write_bytes(b"mine")
    assert load_image(tmp_path / "a.mine").size == (3, 2)


@pytest.mark.usefixtures("small_limits")
def test_pils_own_limit_is_left_alone(tmp_path: Path):
    noise(60, 100).save(tmp_path / "large.png")
    load_image(tmp_path / "large.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")


def test_bytes_that_are_no_image_show_no_address_of_memory():
    with pytest.raises(
        ValueError, match=r"^row 3 cannot be read \(UnidentifiedImageError: in none of the formats that are read\); "
    ):
        decode_image(io.BytesIO(b"<html>"), "row 3")


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*gone\.jpg; put the file there"):
        load_image(tmp_path / "gone.jpg")


def test_a_short_jpeg_that_claims_to_be_large_takes_no_time(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (7, 9)).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (32767).to_bytes(2, "big") * 2
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read \(OSError: \d+ bytes cannot hold 1073676289 pixels\)"):
        load_image(path)
    assert time.process_time() - began < 2  # seventeen, with libjpeg filling in what is not there


def test_a_jpeg_of_a_colour_after_the_other_is_decoded_whole(tmp_path: Path):
    """Whose coefficients take six bytes a pixel."""
    path = tmp_path / "a.jpg"
    noise(16, 16).save(path, comment=b"c\xff\xda\0\x08\x01")
    assert load_image(path).size == (16, 16)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (10_000).to_bytes(2, "big") + (20_000).to_bytes(2, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\d+ bytes cannot hold 200000000 pixels"):
        load_image(path)
    content[content.rindex(b"\xff\xda") + 4] = 1  # components of the scan, of three
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"has 20000 x 10000 pixels, more than 134217728"):
        load_image(path)


def test_a_jpeg_of_many_scans_takes_no_time(tmp_path: Path):
    """Each takes as long as the picture is large: a megabyte of them took hours."""
    whole = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(whole, "JPEG", progressive=True)
    content = whole.getvalue()
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    (tmp_path / "few.jpg").write_bytes(content[:last] + 20 * content[last:end] + content[end:])
    assert load_image(tmp_path / "few.jpg").size == (1024, 1024)
    (tmp_path / "many.jpg").write_bytes(content[:last] + 10_000 * content[last:end] + content[end:])
    began = time.process_time()
    with pytest.raises(ValueError, match=r"many\.jpg cannot be read \(OSError: it goes over its 1048576 pixels 10009 times"):
        load_image(tmp_path / "many.jpg")
    assert time.process_time() - began < 1


def test_pixels_by_the_header_alone(tmp_path: Path):
    Image.new("RGB", (30, 20)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:45])
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert [file_pixels(tmp_path / name) for name in ("whole.png", "cut.png")] == [600, 600]
    with pytest.raises(ValueError, match=r"the image .*none\.png cannot be read"):
        file_pixels(tmp_path / "none.png")
