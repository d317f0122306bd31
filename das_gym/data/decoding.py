"""Decode image files: the formats of data sets, to mode RGB, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from das_gym.files import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "MPO", "PPM", "QOI", "TIFF", "TGA")
"""The PIL formats that are read. PIL has thirty more; two of them (EPS, and IPTC with an EPS inside) run Ghostscript."""

PADDING = 3
"""Surplus bytes before a marker that a JPEG may have: some cameras pad to words of four bytes."""

HINT = "Replace it and resume with `resume=<id>`, or skip its examples with `on_bad_example=skip`"
"""What to do about an image that cannot be used; ends every error of this module."""


def load_image(path: str | Path) -> Image.Image:
    """Read an image file in one of `FORMATS`, fully decoded, in mode RGB.

    EXIF orientation is ignored, except that PIL applies it to TIFF.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated, corrupt, not an image, or has more than PIL's `MAX_IMAGE_PIXELS`.
    """
    return decode_image(path, f"the image {path}")


def decode_image(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """Read an image from a file or from bytes as `load_image` does; `name` stands for it in errors."""
    with _open(source, name) as (file, image):
        is_jpeg = image.format in ("JPEG", "MPO")
        decoded = _to_rgb(image)
        if is_jpeg:
            _check_jpeg(file)
    return decoded


def file_pixels(path: Path) -> int:
    """Return the number of pixels in the header of an image file, without decoding it; raises as `load_image` does."""
    with _open(path, f"the image {path}") as (_, image):
        return int(image.width * image.height)


@contextlib.contextmanager
def _open(source: str | Path | BinaryIO, name: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open an image without decoding it, and name it in the errors of what follows."""
    try:
        file = io.BytesIO(read_bytes(source)) if isinstance(source, str | Path) else source
        Image.init()  # or formats that no image has had so far are missing in `Image.OPEN`
        supported = [each for each in FORMATS if each in Image.OPEN]  # pillow before 11.3 has no AVIF
        with Image.open(file, formats=supported) as image:
            # PIL raises an error from twice this limit on, and only warns below.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            yield file, image
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist. {HINT}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"expected at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise ValueError(f"{name} is too large: got {error}, {limit}. {HINT}") from error
    except Exception as error:  # PIL raises errors of any class for damaged tags and chunks
        reason = "not an image in a supported format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {reason}). {HINT}") from error


def _check_jpeg(file: BinaryIO) -> None:
    """Raise OSError for a JPEG with missing or surplus compressed data.

    PIL does not report these: libjpeg prints a warning and continues. libjpeg-turbo in strict mode decodes the data again
    at an eighth of the size, which is fast.
    """
    file.seek(0)
    try:
        simplejpeg.decode_jpeg(file.read(), "GRAY", min_factor=8, strict=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        message = str(error)
        surplus = re.match(r"Corrupt JPEG data: (\d+) extraneous bytes before", message)
        harmless = message.endswith("bad ICC marker") or (surplus and int(surplus[1]) <= PADDING)
        if message.startswith("Corrupt JPEG data") and not harmless:
            raise OSError(message) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode to mode RGB. Transparent pixels become white; gray of 16 bits is scaled, which PIL would clip."""
    image.load()
    if image.mode == "F":
        raise ValueError("pixels of 32-bit floats are not supported")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"pixels are out of range: got {values.min()}..{values.max()}, expected 0..65535")
        is_deep = image.mode != "I" or values.max() > 0xFF  # pillow reads some 16-bit files as 32 bits
        image = Image.fromarray((values >> 8 if is_deep else values).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
