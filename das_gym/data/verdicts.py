"""Which images can be used: looked for, or decoded once and remembered in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from filelock import FileLock

from das_gym.data.cache import cache_folder
from das_gym.data.images import ImageFile, ImageSource, files_in
from das_gym.files import BAD_ARRAYS, replacing
from das_gym.progress import progress

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar shows."""

_VERDICTS = "readable-images-2.npy"
_UNREADABLE = (FileNotFoundError, ValueError)


def missing_files(images: Mapping[str, ImageSource]) -> dict[str, Exception]:
    """Errors of image files that are not in their folder, by key; every folder is listed once."""
    files = {key: os.path.split(image.path) for key, image in images.items() if isinstance(image, ImageFile)}
    there = {folder: files_in(folder) for folder in {folder for folder, _ in files.values()}}
    absent = [key for key, (folder, name) in files.items() if name not in there[folder]]
    return {key: FileNotFoundError(f"there is no image {key}") for key in absent}


def decode_errors(images: Mapping[str, ImageSource]) -> Generator[tuple[str, Exception], None, None]:
    """Key and error of each image that cannot be decoded, in order; those known to be readable are not decoded again."""
    prints = {key: _fingerprint(image) for key, image in images.items()}
    fingerprints = np.fromiter(prints.values(), np.uint64, len(prints))
    known = np.isin(fingerprints, _read_verdicts(), kind="sort")  # by a table, numpy 2.0 overflows
    unknown = [key for key, seen in zip(prints, known, strict=True) if not seen]
    readable: list[int] = []
    try:
        for key, error in _decode_all([images[key] for key in unknown]):
            if error is None:
                readable.append(prints[key])
            else:
                yield key, error
    finally:  # also of a run that was interrupted
        _add_verdicts(readable)


def _fingerprint(image: ImageSource) -> int:
    """Of an image as it is now."""
    try:
        stamp = image.stamp()
    except (OSError, ValueError):  # it is not there: so opening it will say
        stamp = ""
    digest = hashlib.blake2b(f"{image.key}\n{stamp}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _decode_all(images: list[ImageSource]) -> Iterator[tuple[str, Exception | None]]:
    """Key and error of each image, decoded by as many threads as there are cores."""
    many = len(images) >= MANY_IMAGES
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(len(images), "checking images", unit="image") if many else contextlib.nullcontext() as bar,
    ):
        try:
            for image, error in zip(images, pool.map(_decode_error, images), strict=True):
                yield image.key, error
                if bar is not None:
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode_error(image: ImageSource) -> Exception | None:
    try:
        image.open()
    except _UNREADABLE as error:
        return error
    return None


def _read_verdicts() -> np.ndarray:
    """Fingerprints, (n,) uint64, of images that were decoded before without an error."""
    try:
        with (cache_folder() / _VERDICTS).open("rb") as file:
            known: np.ndarray = np.load(file, allow_pickle=False)
    except BAD_ARRAYS:  # none yet, or damaged: images are decoded again
        return np.empty(0, np.uint64)
    return known if known.dtype == np.uint64 and known.ndim == 1 else np.empty(0, np.uint64)


def _add_verdicts(readable: list[int]) -> None:
    """Remember readable images; a cache folder that cannot be written to costs decoding them again, no more."""
    if not readable:
        return
    path = cache_folder() / _VERDICTS
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), replacing(path) as part, part.open("wb") as file:
            np.save(file, np.union1d(_read_verdicts(), np.array(readable, np.uint64)))
