"""From an image file to a picture: formats of data sets, in mode RGB, and errors that name the file.

PIL's limit on the size of pictures is one for the whole process, and warns before it refuses. It is left as it is, and
files are opened without it; the limits are those below.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import stat
import struct
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

WHOLE_PIXELS = 89_478_485
"""A picture of more pixels is scaled down: a JPEG as it is decoded, to a half, a quarter or an eighth of its sides, others
in tiles, by a whole number. Source: PIL's own limit."""

LARGE_PIXELS = 2**24
"""Pictures of more pixels are decoded one at a time, however many threads there are."""

TILE = 512
"""Pixels of the result that are made at a time, along either side, of a picture that is scaled down."""

_one_large = threading.Lock()

SHORT_SIDE = 2048
"""Pixels that the shorter side of such a JPEG keeps at least: several times what a model reads."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
"""PIL's formats that are read. It has thirty more, which no data set needs; for an EPS, and an IPTC that holds one, it has
Ghostscript run what the picture says."""

PROGRESSIVE = "progressive JPEG"
"""One in several scans, also one colour after the other: it is decoded whole, however small it is wanted."""

MAX_PIXELS = {"JPEG": 2**30, "MPO": 2**30, PROGRESSIVE: 2**27, "PNG": 2**28, "BMP": 2**28}
MAX_PIXELS |= dict.fromkeys(("AVIF", "JPEG2000", "WEBP"), 2**25)
"""Most pixels of a picture, by format: about a gigabyte for a moment. Other formats have PIL's own limit: they check it
again while they are decoded."""

MAX_SCANNED = 2**31
"""Most pixels of a progressive JPEG times its scans, of which the usual have ten: each goes over the whole picture."""

OTHER_PIXELS = WHOLE_PIXELS
"""That of other formats where PIL's own limit was switched off."""

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError),  # of damaged tags and chunks
    Image.DecompressionBombError,
    *(Image.DecompressionBombWarning, UserWarning),  # raised where warnings are errors
)
"""What PIL raises for a file that is not an image, is cut short, is damaged, or is far too large."""

_OTHER_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
"""What the reader of one of PIL's formats raises for a file of another."""

PADDING = 3
"""Bytes too many before a marker that a JPEG may have: some cameras fill up words of four."""

_REPLACE = "replace it with a whole copy, and a stopped run goes on with resume=<id>"

_WAY_OUT = "or leave its examples out with on_bad_example=skip"


def load_image(path: str | Path) -> Image.Image:
    """Read an image file, fully decoded. Orientation is as stored, but for a TIFF: PIL turns that, no other by EXIF.

    Args:
        path: A file in one of FORMATS, or in one that somebody has registered with PIL.

    Returns:
        The image, mode RGB; one of more than WHOLE_PIXELS is scaled down.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, corrupt as far as that can be seen, no image, or has more than MAX_PIXELS.
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
    try:
        with _opened(source) as file, _identify(file) as image:
            is_jpeg = image.format in ("JPEG", "MPO")
            kind = PROGRESSIVE if is_jpeg and _has_scans(file) else image.format or ""
            most = MAX_PIXELS.get(kind) or Image.MAX_IMAGE_PIXELS or OTHER_PIXELS
            size = image.size
            if size[0] * size[1] <= most:
                if is_jpeg:
                    _check_claim(file, size[0] * size[1])
                if kind == PROGRESSIVE:
                    _check_scans(file, size[0] * size[1])
                with _one_large if size[0] * size[1] > LARGE_PIXELS else contextlib.nullcontext():
                    picture = _within_limit(_drafted(image))
                    if is_jpeg:
                        _check_jpeg(file)
                    return picture
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{name} cannot be read ({type(error).__name__}: {error}); it is truncated, corrupt or no image: "
            f"{_REPLACE}, {_WAY_OUT}"
        ) from error
    raise ValueError(f"{name} has {size[0]} x {size[1]} pixels, more than {most}; scale it down, {_WAY_OUT}")


def file_pixels(path: Path) -> int:
    """How many pixels a picture in a file says it has; nothing is decoded.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with _opened(path) as file, _identify(file) as image:
            return int(image.width * image.height)
    except _UNREADABLE as error:
        raise ValueError(f"the image {path} cannot be read ({type(error).__name__}: {error}): {_REPLACE}") from error


def _opened(source: str | Path | BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    if not isinstance(source, str | Path):
        return contextlib.nullcontext(source)
    mode = Path(source).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # some wait for whoever writes to them, some never end
        raise OSError("it is a pipe or a device, not a file")
    return Path(source).open("rb")


def _identify(file: BinaryIO) -> Image.Image:
    """The picture in a file, not yet decoded: `PIL.Image.open` without its limit."""
    prefix = file.read(16)
    tried: set[str] = set()
    for register in (Image.preinit, Image.init):  # the usual formats, then all
        register()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            if factory.__module__.startswith("PIL.") and name not in FORMATS:
                continue
            accepted = accept is None or accept(prefix)
            if not accepted or isinstance(accepted, str):  # a text says what PIL lacks to read it
                continue
            with contextlib.suppress(*_OTHER_FORMAT):
                file.seek(0)
                return factory(file, "")
    raise UnidentifiedImageError("in none of the formats that are read")


def _check_claim(file: BinaryIO, pixels: int) -> None:
    """Refuse a large JPEG that cannot hold what it claims to, which libjpeg would fill with gray for half a minute.

    A square of 8 x 8 pixels takes a bit at least. (Arithmetic coding, which nobody uses, may take less.)

    Raises:
        OSError: it is too short.
    """
    at = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(at)
    if pixels > LARGE_PIXELS and length * 512 < pixels:
        raise OSError(f"{length} bytes cannot hold {pixels} pixels")


def _has_scans(file: BinaryIO) -> bool:
    """Whether a JPEG's first scan does not tell all of its pixels; also where that cannot be seen."""
    at = file.tell()
    file.seek(2)
    try:
        return _first_scan_lacks(file)
    except (IndexError, struct.error):
        return True
    finally:
        file.seek(at)


def _first_scan_lacks(file: BinaryIO) -> bool:
    progressive, components = False, 0
    while True:
        start, marker = struct.unpack(">BB", file.read(2))
        if marker == 0xFF:  # one may fill up
            file.seek(-1, io.SEEK_CUR)
            continue
        (length,) = struct.unpack(">H", file.read(2))
        content = file.read(max(0, length - 2))
        if start != 0xFF or length < 2:
            return True
        if marker == 0xDA:
            return progressive or content[0] < components
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive, components = marker in (0xC2, 0xC6, 0xCA, 0xCE), content[5]


def _check_scans(file: BinaryIO, pixels: int) -> None:
    """Refuse a progressive JPEG that would take minutes: a scan without anything new has sixteen bytes.

    Raises:
        OSError: it has too many.
    """
    at = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(at)
    if scans * pixels > MAX_SCANNED:
        raise OSError(f"it goes over its {pixels} pixels {scans} times")


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


def _drafted(image: Image.Image) -> Image.Image:
    """The image, told to decode itself smaller if it is large; only JPEGs can."""
    if image.width * image.height > WHOLE_PIXELS:
        image.draft(None, (SHORT_SIDE, SHORT_SIDE))
    return image


def _within_limit(image: Image.Image) -> Image.Image:
    """The image in mode RGB, of at most WHOLE_PIXELS: a larger one is averaged over squares, tile by tile."""
    image.load()  # the oldest pillow allowed turns a TIFF only now
    pixels = image.width * image.height
    by = math.ceil(math.sqrt(pixels / WHOLE_PIXELS))
    if image.mode in ("I", "F"):
        image = _of_8_bits(image)  # by the range of the whole picture
    if by == 1 and pixels <= LARGE_PIXELS:
        return _as_rgb(image)
    side = by * max(1, min(TILE, math.isqrt(WHOLE_PIXELS) // by))  # PIL's limit holds for what is cut out, too
    small = Image.new("RGB", (math.ceil(image.width / by), math.ceil(image.height / by)))
    for top, left in itertools.product(range(0, image.height, side), range(0, image.width, side)):
        tile = image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))
        small.paste(_as_rgb(tile).reduce(by), (left // by, top // by))
    return small


def _as_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB, what is transparent on white. PIL alone would turn nearly every gray of more than 8 bits white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)  # not the colour that it hides
    return image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """A gray picture of 32-bit numbers: from 0 to 1 where they are floats, or else of the fewest of 8 or 16 bits they fit.

    Raises:
        ValueError: they fit neither.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())  # PIL's own extrema leave out what is no number
    if not 0 <= low <= high <= 0xFFFF:
        raise ValueError(f"its pixels are 32-bit numbers from {low:g} to {high:g}; save it with 8 bits a channel")
    if image.mode == "F" and high <= 1:
        values = np.rint(255 * values)
    elif high > 0xFF:
        values = values // 256  # as of 16 bits
    return Image.fromarray(values.astype(np.uint8))
