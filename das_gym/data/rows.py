"""Rows of data: of a `datasets.Dataset` or of a list of dicts, in memory or in a local file.

Rows are read one after another. Images in them stay encoded until they are opened, and nothing is ever downloaded.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from das_gym.data.images import (
    IMAGE_HINT,
    ImageFile,
    ImageSource,
    check_image_name,
    content_digest,
    decode_image,
    plain_name,
    to_rgb,
)
from das_gym.data.tables import open_table
from das_gym.files import absolute_path

BATCH_ROWS = 64
"""Rows of a `datasets.Dataset` that are read at a time; they may have images of megabytes."""


def is_dataset(rows: object) -> bool:
    """Return True for a `datasets.Dataset`, without importing that library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def read_cell(rows: Any, row: int, column: str) -> Any:
    """Return the value in a cell of `Table.rows`; ValueError if the cell does not exist."""
    try:
        values = rows[row]
        return values[column][0].as_py() if is_dataset(rows) else values[column]
    except (IndexError, KeyError):
        raise ValueError(f"{column} in row {row} does not exist: the data have changed. Start a new process.") from None


def find_local(name: str, where: str) -> ImageFile:
    """Return the image file of a path; ValueError, with the place of the row that names it, for no name of a local file."""
    check_image_name(name, where)
    return ImageFile(absolute_path(name))


def cell_images(cell: Any, name: str) -> list[Any]:
    """Return the images in a cell of a table, each the bytes of an image file, a PIL image, or a path.

    Args:
        cell: An image, a list of images, or None. An image is a dict of `bytes` and `path`, as `datasets` stores it; a PIL
            image; bytes; or a path.
        name: What errors call the cell.
    """
    if cell is None:
        return []
    if isinstance(cell, list | tuple):
        found = [cell_images(each, name) for each in cell]
        if [] in found:
            raise ValueError(f"{name} has an empty place: image {found.index([])} of {len(found)} is null. Remove it.")
        return [image for images in found for image in images]
    if isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
        content = cell.get("bytes")
        return cell_images(cell.get("path") if content is None else content, name)
    if isinstance(cell, bytes | Image.Image):
        return [cell]
    if isinstance(cell, str | Path):
        return [str(cell)]
    expected = "a PIL image, bytes, a path, or a dict of `bytes` and `path`"
    raise ValueError(f"{name} is not an image: got {cell!r:.60}, expected {expected}")


def image_digest(image: Any, name: str) -> str:
    """Return a text that identifies the bytes of an image file, or the pixels of a PIL image; ValueError if damaged."""
    if not isinstance(image, Image.Image):
        return content_digest(image)
    pixels = _pixels(image, name)
    return content_digest(str(pixels.size).encode() + pixels.tobytes())


def _pixels(image: Image.Image, name: str) -> Image.Image:
    try:
        return to_rgb(image.copy())
    except Exception as error:  # PIL raises errors of any class for damaged files, which it reads at the first access
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error}). {IMAGE_HINT}") from error


@dataclass(frozen=True, slots=True)
class CellImage:
    """An image in a cell of a table, which is opened with the image.

    Attributes:
        path: The file of the table, or the name of `rows`.
        row, column: The cell.
        index: The image's place in the cell.
        digest: Identifies the image, so that equal images of several rows have the same key; empty where rows differ anyway.
        rows: Rows in memory, see `Table.rows`; None reads the file.
    """

    path: Path
    row: int
    column: str = "image"
    index: int = 0
    digest: str = ""
    rows: Any = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The digest; or table, row and column."""
        return f"image {self.digest}" if self.digest else f"{self.path}#{self.row}.{self.column}"

    def fingerprint(self) -> str:
        """Return size and modification time of the table; nothing with a digest, which changes with the image."""
        return "" if self.digest else ImageFile(self.path).fingerprint()

    @property
    def name(self) -> str:
        """Its place in the table, for errors."""
        return f"{self.column} in row {self.row} of {self.path}"

    def size(self) -> int:
        """Return the size of the image file in bytes."""
        return len(self._content())

    def read(self, last: int | None = None) -> bytes:
        """Return the bytes of the image file, or at most the `last` ones; raise ValueError as `open` does."""
        data: bytes = self._content()
        return data if last is None else data[-last:]

    def open(self) -> Image.Image:
        """Return the image, mode RGB; raise ValueError where table or cell is damaged, empty or has changed."""
        content = self._content()
        if isinstance(content, Image.Image):
            return _pixels(content, self.name)
        return decode_image(io.BytesIO(content), self.name)

    def _content(self) -> Any:
        rows = open_table(self.path) if self.rows is None else self.rows
        found = cell_images(read_cell(rows, self.row, self.column), self.name)
        content = found[self.index] if self.index < len(found) else b""
        if isinstance(content, str):
            raise ValueError(f"{self.name} is not an image: got {content!r:.60}, expected the bytes of an image file")
        if self.digest and image_digest(content, self.name) != self.digest:
            raise ValueError(f"{self.name} has changed since it was loaded. Start a new process.")
        return content


@dataclass(frozen=True)
class Table:
    """Rows, and what errors and keys call them.

    Attributes:
        rows: A `datasets.Dataset` in the format `arrow`, in which it does not decode images; or a sequence of dicts.
        name: What errors call the rows: the path of their file, or `train`.
        key: The beginning of the keys of examples, which end with the number of the row.
        path: The file of the rows; None if they are in memory.
        find: Returns the file of an image that a row names, given that name and the place of the row.
    """

    rows: Any
    name: str
    key: str
    path: Path | None = None
    find: Callable[[str, str], ImageSource] = find_local

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order."""
        if is_dataset(self.rows):
            return list(self.rows.column_names)
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def class_names(self, column: str) -> Sequence[str] | None:
        """Return the names that the integers of a column stand for (`ClassLabel` of `datasets`), or None."""
        if not is_dataset(self.rows):
            return None
        feature = self.rows.features[column]
        return feature.names if type(feature).__name__ == "ClassLabel" else None

    def entries(self, columns: Iterable[str]) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
        """Yield the place of each row, for errors, and its number and its values in the columns; None is a missing value.

        Raises:
            ValueError: A column is missing.
        """
        wanted = list(dict.fromkeys(columns))
        known = self.columns
        missing = [name for name in wanted if name not in known]
        if missing:
            raise ValueError(f"{self.name} lacks the column `{missing[0]}`: got {', '.join(known) or 'no columns'}")
        for number, values in enumerate(self._values(wanted)):
            yield f"{self.name}: row {number}", (number, values)

    def _values(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        if not is_dataset(self.rows):
            yield from ({name: row.get(name) for name in columns} for row in self.rows)
            return
        for batch in self.rows.select_columns(columns).iter(BATCH_ROWS):
            yield from batch.to_pylist()

    def images(self, row: int, column: str, cell: Any, where: str) -> list[tuple[str, ImageSource]]:
        """Return name and image of each image in a cell: an image of the cell, or a file that it names.

        Args:
            row: The number of the row.
            column: The name of the column.
            cell: The cell's value, see `cell_images`.
            where: Its place for errors.
        """
        found: list[tuple[str, ImageSource]] = []
        for number, content in enumerate(cell_images(cell, f"{where}: `{column}`")):
            if isinstance(content, str):
                found.append((plain_name(content), self.find(content, where)))
                continue
            digest = image_digest(content, f"{where}: `{column}`")
            in_memory = self.rows if self.path is None else None
            image = CellImage(self.path or Path(self.name), row, column, number, digest, in_memory)
            found.append((image.key, image))
        return found


def table_of_rows(rows: Any, name: str) -> Table:
    """Return rows in memory as a table.

    Args:
        rows: A `datasets.Dataset`, or a list of dicts. An image in them is what `datasets` stores (a dict of `bytes` and
            `path`), a PIL image, the bytes of an image file, its path, or a list of these.
        name: What errors and keys call them, such as `train`.

    Raises:
        TypeError: `rows` is something else.
    """
    if is_dataset(rows):
        return Table(rows.with_format("arrow"), name, name)
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        return Table(rows, name, name)
    raise TypeError(f"`{name}` is not data: got {type(rows).__name__}, expected a datasets.Dataset or a list of dicts")


def table_of_file(path: Path, folder: Path, find: Callable[[str, str], ImageSource] = find_local) -> Table:
    """Return the rows of a parquet or arrow file as a table; ValueError, which names the file, if it is damaged.

    Args:
        path: The file.
        folder: Keys of examples begin with the file's path in this folder.
        find: See `Table.find`.
    """
    return Table(open_table(path), str(path), path.relative_to(folder).as_posix(), path, find)
