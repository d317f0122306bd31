"""Find images that are missing or cannot be decoded. Images that were decoded once are remembered in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from filelock import FileLock

from das_gym.data.cache import cache_folder
from das_gym.data.images import ImageFile, ImageSource, files_in
from das_gym.files import replacing
from das_gym.progress import progress

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar is shown."""

READABLE = "readable-images-2.npy"
"""The file in the cache folder: fingerprints of the images that were decoded without an error."""


def missing_files(images: Mapping[str, ImageSource]) -> dict[str, Exception]:
    """Return the errors of image files that do not exist, by key; lists every folder once."""
    files = {key: os.path.split(image.path) for key, image in images.items() if isinstance(image, ImageFile)}
    names = {folder: files_in(folder) for folder in {folder for folder, _ in files.values()}}
    absent = [key for key, (folder, name) in files.items() if name not in names[folder]]
    return {key: FileNotFoundError(f"the image {key} does not exist") for key in absent}


def decode_errors(images: Mapping[str, ImageSource]) -> Generator[tuple[str, Exception], None, None]:
    """Yield key and error of each image that cannot be decoded, in order; skips images that are known to be readable."""
    fingerprints = {key: fingerprint(image) for key, image in images.items()}
    # kind="sort": with a table, numpy 2.0 overflows
    known = np.isin(np.fromiter(fingerprints.values(), np.uint64, len(images)), read_readable(), kind="sort")
    unknown = [key for key, seen in zip(fingerprints, known, strict=True) if not seen]
    readable: list[int] = []
    try:
        for key, error in _decode_all([images[key] for key in unknown]):
            if error is None:
                readable.append(fingerprints[key])
            else:
                yield key, error
    finally:  # also after an interruption
        _add_readable(readable)


def require_readable(images: Iterable[ImageSource]) -> None:
    """Decode every image that is not known to be readable, before a long computation needs it; raise the first error."""
    with contextlib.closing(decode_errors({image.key: image for image in images})) as errors:
        for _, error in errors:
            raise error


def fingerprint(image: ImageSource) -> int:
    """Return a 64-bit hash of an image's key and its current stamp (for a file: size and time of change)."""
    try:
        stamp = image.stamp()
    except (OSError, ValueError):  # it does not exist, which opening it will report
        stamp = ""
    digest = hashlib.blake2b(f"{image.key}\n{stamp}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _decode_all(images: list[ImageSource]) -> Iterator[tuple[str, Exception | None]]:
    """Yield key and error of each image, decoded in as many threads as there are cores."""

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
            for image, error in zip(images, pool.map(error_of, images), strict=True):
                yield image.key, error
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_readable() -> np.ndarray:
    """Return the fingerprints, (n,) uint64, of the images that were decoded before; none where the file is damaged."""
    try:
        with (cache_folder() / READABLE).open("rb") as file:
            known: np.ndarray = np.load(file, allow_pickle=False)
    except Exception:  # a damaged file can raise anything
        return np.empty(0, np.uint64)
    return known if known.dtype == np.uint64 and known.ndim == 1 else np.empty(0, np.uint64)


def _add_readable(fingerprints: list[int]) -> None:
    """Add images to the cache of readable ones. Without a writable cache folder they are decoded again next time."""
    if not fingerprints:
        return
    path = cache_folder() / READABLE
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), replacing(path) as part, part.open("wb") as file:
            np.save(file, np.union1d(read_readable(), np.array(fingerprints, np.uint64)))
