"""Images: what a reader of data gives instead of pixels, and decoding them to mode RGB, with errors that name the file.

Anything that can be opened is an image to das_gym.
"""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from das_gym.commands.progress import progress
from das_gym.files import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Usual suffixes of image files, in lower case."""

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar is shown."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "MPO", "PPM", "QOI", "TIFF", "TGA")
"""The PIL formats that are read. PIL has thirty more; two of them (EPS, and IPTC with an EPS inside) run Ghostscript."""

PADDING = 3
"""Surplus bytes before a marker that a JPEG may have: some cameras pad to words of four bytes."""

IMAGE_HINT = "Replace it and resume with `resume=<id>`, or skip its examples with `on_bad_example=skip`"
"""What to do about an image that cannot be used; ends every error of decoding."""


class ImageSource(Protocol):
    """An image that is read when it is needed."""

    @property
    def key(self) -> str:
        """A name that is unique to the image."""

    def fingerprint(self) -> str:
        """Return a text that changes when the image changes, as far as that is cheap to know."""

    def open(self) -> Image.Image:
        """Return the image, mode RGB, fully decoded; FileNotFoundError without it, ValueError if it is damaged."""


class OneImage:
    """An example or a row of a batch with a single image."""

    __slots__ = ()
    image: ImageSource

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The image, in a tuple."""
        return (self.image,)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file."""

    path: Path

    @property
    def key(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Return the size of the file in bytes, and its modification time in ns."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.path.stat().st_size

    def read(self, last: int | None = None) -> bytes:
        """Return the bytes of the file, or at most the `last` ones."""
        with self.path.open("rb") as file:
            if last is not None:
                file.seek(max(0, self.size() - last))
            return file.read()

    def open(self) -> Image.Image:
        """Decode the file; see `load_image`."""
        return load_image(self.path)


def is_folder(path: Path) -> bool:
    """Return True if a folder exists; False for a path that the system rejects, such as one that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def files_in(folder: str | Path) -> frozenset[str]:
    """Return the names of the files in a folder, with one listing; empty where the folder does not exist."""
    try:
        with os.scandir(folder) as listing:
            return frozenset(
                entry.name for entry in listing if entry.is_file(follow_symlinks=False) or Path(entry).is_file()
            )
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return frozenset()


@dataclass(frozen=True)
class FolderListings:
    """Finds files among several candidate paths; lists each folder once."""

    _names: dict[Path, frozenset[str]] = field(default_factory=dict)

    def has(self, path: Path) -> bool:
        """Return True if a file exists, or existed when its folder was listed."""
        if path.parent not in self._names:
            self._names[path.parent] = files_in(path.parent)
        return path.name in self._names[path.parent]

    def first_existing(self, paths: Sequence[Path]) -> Path:
        """Return the first path that exists; else the first whose folder exists; else the first."""
        found = next(filter(self.has, paths), None)
        return found or next((path for path in paths if is_folder(path.parent)), paths[0])


@dataclass(frozen=True, slots=True)
class NoiseImage:
    """An image of random pixels, the same for the same seed, on which two forms of a model are compared."""

    seed: int
    width: int = 64
    height: int = 48

    @property
    def key(self) -> str:
        """Its seed and size."""
        return f"noise {self.seed} {self.width} {self.height}"

    def fingerprint(self) -> str:
        """Return an empty text, since it never changes."""
        return ""

    def open(self) -> Image.Image:
        """Return the image, mode RGB."""
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


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
        decoded = to_rgb(image)
        if is_jpeg:
            _check_jpeg(file)
    return decoded


def file_pixels(path: Path) -> int:
    """Return the number of pixels in the header of an image file, without decoding it; raises as `load_image` does."""
    with _open(path, f"the image {path}") as (_, image):
        return int(image.width * image.height)


@contextlib.contextmanager
def _open(source: str | Path | BinaryIO, name: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
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
        raise FileNotFoundError(f"{name} does not exist. {IMAGE_HINT}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"expected at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise ValueError(f"{name} is too large: got {error}, {limit}. {IMAGE_HINT}") from error
    except Exception as error:  # PIL raises errors of any class for damaged tags and chunks
        reason = "not an image in a supported format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {reason}). {IMAGE_HINT}") from error


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


def to_rgb(image: Image.Image) -> Image.Image:
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


def decode_errors(images: Mapping[str, ImageSource]) -> Generator[tuple[str, Exception], None, None]:
    """Yield key and error of each image that cannot be decoded, in order; decodes in as many threads as there are cores."""

    def error_of(image: ImageSource) -> Exception | None:
        try:
            image.open()
        except (FileNotFoundError, ValueError) as error:
            return error
        return None

    many = len(images) >= MANY_IMAGES
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(len(images), "checking images", unit="image") if many else contextlib.nullcontext() as bar,
    ):
        try:
            for key, error in zip(images, pool.map(error_of, images.values()), strict=True):
                if error is not None:
                    yield key, error
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def require_readable(images: Iterable[ImageSource]) -> None:
    """Decode every image before a long computation needs it; raise the first error."""
    with contextlib.closing(decode_errors({image.key: image for image in images})) as errors:
        for _, error in errors:
            raise error


def content_digest(data: Any) -> str:
    """Return a text that identifies the bytes in a buffer."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def plain_name(name: str) -> str:
    """Return the name of an image in one spelling: `./a//b.jpg` is `a/b.jpg`."""
    return Path(os.path.normpath(name)).as_posix()


def check_image_name(name: str, where: str) -> None:
    """Raise ValueError for what cannot be the name of a local file, such as a URL."""
    if not name.strip() or "://" in name or any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError(f"{where}: wrong name of an image: got {name!a:.60}, expected the name of a local file")
