"""Decode image files: the formats of data sets, to mode RGB, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from das_gym.files import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "MPO", "PPM", "QOI", "TIFF", "TGA")
"""PIL's formats that are read. PIL has thirty more that no data set needs; it has Ghostscript run what an EPS says, and an
IPTC that holds one."""

PADDING = 3
"""Bytes too many before a marker that a JPEG may have: some cameras fill up words of four."""

_REPLACE = "replace it with a whole copy, and a stopped run goes on with resume=<id>"

_WAY_OUT = "or leave its examples out with on_bad_example=skip"


def load_image(path: str | Path) -> Image.Image:
    """Read an image file, fully decoded. Orientation is as stored, but for a TIFF: PIL turns that, no other by EXIF.

    Args:
        path: A file in one of FORMATS.

    Returns:
        The image, mode RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, corrupt as far as that can be seen, no image, or has more than PIL's
            MAX_IMAGE_PIXELS.
    """
    try:
        return decode_image(path, f"the image {path}")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no image {path}; put the file there, and a stopped run goes on with resume=<id>, {_WAY_OUT}"
        ) from None


def decode_image(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """Read an image from a file or from bytes, as `load_image` does.

    Args:
        source: A path or an open file.
        name: Names it in errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, corrupt, no image, or too large.
    """
    with _opened(source, name) as (file, image):
        is_jpeg = image.format in ("JPEG", "MPO")
        decoded = _as_rgb(image)
        if is_jpeg:
            _check_jpeg(file)
    return decoded


def file_pixels(path: Path) -> int:
    """Return how many pixels the header of an image file claims; nothing is decoded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    with _opened(path, f"the image {path}") as (_, image):
        return int(image.width * image.height)


@contextlib.contextmanager
def _opened(source: str | Path | BinaryIO, name: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open an image, not yet decoded; what is raised meanwhile names it.

    PIL raises an error from twice its MAX_IMAGE_PIXELS and only warns before; here both are errors.
    """
    try:
        file = io.BytesIO(read_bytes(source)) if isinstance(source, str | Path) else source
        Image.init()
        known = [each for each in FORMATS if each in Image.OPEN]  # an old pillow has no AVIF
        with Image.open(file, formats=known) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(
                    f"it has {image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}"
                )
            yield file, image
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large ({error}); scale it down, {_WAY_OUT}") from error
    except Exception as error:  # of damaged tags and chunks PIL raises anything
        told = "in none of the formats that are read" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{name} cannot be read ({type(error).__name__}: {told}); it is truncated, corrupt or no image: "
            f"{_REPLACE}, {_WAY_OUT}"
        ) from error


def _check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG whose compressed data do not come out even, of which PIL says nothing: libjpeg warns, and goes on.

    The data are decoded once more, to an eighth of the sides, which is quick. What PIL has read is refused for nothing
    else, and damage that leaves as many codes as there have to be cannot be seen: docs/data.md has how much is.

    Raises:
        OSError: bytes are left over or lacking, or are no code.
    """
    import simplejpeg

    file.seek(0)
    try:
        simplejpeg.decode_jpeg(file.read(), "GRAY", min_factor=8, strict=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        told = str(error)
        left = re.match(r"Corrupt JPEG data: (\d+) extraneous bytes before", told)
        if (
            told.startswith("Corrupt JPEG data")
            and not told.endswith("bad ICC marker")
            and not (left and int(left[1]) <= PADDING)
        ):
            raise OSError(told) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Decode to mode RGB, what is transparent on white. PIL alone turns nearly every gray of more than 8 bits white."""
    image.load()  # the oldest pillow allowed turns a TIFF only now
    if image.mode in ("I", "F"):
        image = _of_8_bits(image)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)  # not the colour that it hides
    return image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Scale 32-bit gray to 8 bits: floats from 0 to 1, or else numbers of the fewest of 8 or 16 bits that they fit.

    Raises:
        ValueError: they fit neither.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())  # PIL's own extrema leave out NaN
    if not 0 <= low <= high <= 0xFFFF:
        raise ValueError(f"its pixels are 32-bit numbers from {low:g} to {high:g}; save it with 8 bits a channel")
    if image.mode == "F" and high <= 1:
        values = np.rint(255 * values)
    elif high > 0xFF:
        values = values // 256  # as of 16 bits
    return Image.fromarray(values.astype(np.uint8))
