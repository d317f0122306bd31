"""Find images that are missing or cannot be decoded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from das_gym.data.images import ImageFile, ImageSource, files_in
from das_gym.progress import progress

MANY_IMAGES = 1000
"""From this many images to decode on, a progress bar is shown."""


def missing_files(images: Mapping[str, ImageSource]) -> dict[str, Exception]:
    """Return the errors of image files that do not exist, by key; lists every folder once."""
    files = {key: os.path.split(image.path) for key, image in images.items() if isinstance(image, ImageFile)}
    # On network file systems, a listing is much faster than asking for each of 100,000 files.
    names = {folder: files_in(folder) for folder in {folder for folder, _ in files.values()}}
    absent = [key for key, (folder, name) in files.items() if name not in names[folder]]
    return {key: FileNotFoundError(f"the image {key} does not exist") for key in absent}


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
