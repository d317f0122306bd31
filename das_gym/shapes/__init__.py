"""Generated data sets of coloured shapes in the official formats.

The bundled ones are drawn when they are first used; until then nothing that draws them is imported.
"""

import pkgutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from das_gym.files import CACHE_VARIABLE, absolute_path, cache_folder


@dataclass(frozen=True)
class BundledData:
    """A data set that is written into the cache folder.

    Attributes:
        folder: Its folder there. Raise the number at its end with every change of images, questions or sentences, so that no
            stale folder is read.
        title: Its name in messages.
        write: "module:name" of the function that writes it.
    """

    folder: str
    title: str
    write: str


BUNDLED = {
    "vqa": BundledData("shapes-vqa-1", "Shapes-VQA", "das_gym.shapes.vqa:write_shapes"),
    "nlvr2": BundledData("shapes-nlvr2-1", "Shapes-NLVR2", "das_gym.shapes.nlvr2:write_shapes_nlvr2"),
    "captions": BundledData("shapes-captions-1", "Shapes-captions", "das_gym.shapes.captions:write_shapes_captions"),
}
"""Every bundled data set by name. They take 10 to 40 MB, and seconds to a minute to write."""


def bundled_root(name: str, cache: str | Path | None = None) -> Path:
    """Return the folder of a data set of `BUNDLED`, a `data_root`, which the first process writes completely.

    Raises:
        ValueError: It cannot be written to `cache`, or to the cache folder if that is None.
    """
    data = BUNDLED[name]
    folder = (cache_folder() if cache is None else absolute_path(cache)) / data.folder
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may need the data at once: one writes, the others wait and look again.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                pkgutil.resolve_name(data.write)(folder)
    except OSError as error:
        message = f"{data.title} cannot be written to {folder.parent} ({error}). Set {CACHE_VARIABLE} to a writable folder"
        raise ValueError(message) from error
    return folder
