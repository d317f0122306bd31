"""The pyarrow tables that ViLT's and METER's users have: finds them, opens them memory-mapped, and reads their images.

A data root holds the tables of one or of all tasks under the names that ViLT's scripts give them. A table may be named
itself as the data root, which is needed where the folder holds two data sets for one task.
"""

from __future__ import annotations

import contextlib
import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das_gym.data.decoding import decode_image
from das_gym.files import absolute, at_home

if TYPE_CHECKING:
    import pyarrow
    from PIL.Image import Image

BATCH_ROWS = 1024

_MAKE_AGAIN = "get or make it again (ViLT's and METER's scripts write such tables)"


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """How the files of a task are named.

    Attributes:
        task: The task.
        tables: How its arrow tables begin; then follow `_`, the split and `.arrow`.
        raw: Patterns of files of its own format, from the data root on.
    """

    task: str
    tables: tuple[str, ...]
    raw: tuple[str, ...]


def is_arrow(data_root: str | Path, files: TaskFiles) -> bool:
    """Whether a data root holds arrow tables of a task; if not, it is for the reader of the task's own format.

    Args:
        data_root: A folder, or a table.
        files: How the task's files are named.

    Raises:
        ValueError: It holds both arrow tables and files of the task's own format.
    """
    root = at_home(data_root)
    if root.suffix == ".arrow":
        return True
    tables = [path.name for prefix in files.tables for path in sorted(root.glob(f"{prefix}_*.arrow"))]
    raw = [str(path.relative_to(root)) for pattern in files.raw for path in sorted(root.glob(pattern))]
    if tables and raw:
        raise ValueError(
            f"{root} holds the data of {files.task} twice, as arrow tables ({tables[0]}, ...) and in its own format "
            f"({raw[0]}, ...); name a folder with one of them, or pass data_root={root / tables[0]} for the tables"
        )
    return bool(tables)


@dataclass(frozen=True, slots=True)
class ArrowFolder:
    """The tables of one data set.

    Attributes:
        folder: Where they are, absolute.
        prefix: How their names begin.
    """

    folder: Path
    prefix: str

    @classmethod
    def find(cls, data_root: str | Path, files: TaskFiles) -> ArrowFolder:
        """The tables of a task in a data root.

        Raises:
            FileNotFoundError: There are none.
            ValueError: There are two data sets, or the data root is a table of another task.
        """
        root = absolute(data_root)
        patterns = " or ".join(f"{prefix}_<split>.arrow" for prefix in files.tables)
        if root.suffix == ".arrow":
            found = [prefix for prefix in files.tables if root.name.startswith(f"{prefix}_")]
            if not found:
                raise ValueError(f"data_root={str(data_root)!r} is no table of {files.task}: its name must be {patterns}")
            return cls(root.parent, found[0])
        found = [prefix for prefix in files.tables if any(root.glob(f"{prefix}_*.arrow"))]
        if len(found) > 1:
            first = next(root.glob(f"{found[1]}_*.arrow"))
            raise ValueError(
                f"{root} holds the tables of {' and '.join(found)}; name one table as the data root, such as {first}"
            )
        if not found:
            raise FileNotFoundError(f"{root} holds no table {patterns}")
        return cls(root, found[0])

    def path(self, split: str) -> Path:
        """The table of a split; it need not be there."""
        return self.folder / f"{self.prefix}_{split}.arrow"

    def require(self, split: str) -> Path:
        """The table of a split.

        Raises:
            FileNotFoundError: It is not there.
        """
        path = self.path(split)
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in self.folder.glob(f"{self.prefix}_*.arrow"))) or "none"
            raise FileNotFoundError(f"there is no table {path}; of {self.prefix} there is: {there}")
        return path


def open_table(path: Path, columns: Mapping[str, str], read: Iterable[str] | None = None) -> pyarrow.Table:
    """Columns of a table, memory-mapped and checked; opened once in a process while it does not change.

    Args:
        path: The table.
        columns: Kind of each column that is needed, such as `bytes`, `integer`, `text` or `list of text`.
        read: Those of them that the result has; None = all.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It is no arrow file, truncated or damaged, or a column is missing or of another kind.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no table {path}; {_MAKE_AGAIN}") from None
    return _open(path, tuple(columns.items()), tuple(columns if read is None else read), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _open(path: Path, columns: tuple[tuple[str, str], ...], read: tuple[str, ...], size: int, changed: int) -> pyarrow.Table:
    del size, changed  # parts of the cache's key
    pa = _pyarrow()
    with _named(path):
        file = pa.memory_map(str(path))
        schema = pa.ipc.open_file(file).schema
        names = schema.names  # the last of which may be no UTF-8
    if not names:
        return pa.table({})  # no rows is what is wrong with it
    for name, kind in columns:
        if name not in names:
            needed = ", ".join(each for each, _ in columns)
            raise ValueError(f"{path} has no column {name!r}; it needs {needed}, and has {', '.join(names)}")
        if (count := names.count(name)) > 1:
            raise ValueError(f"{path} has {count} columns {name!r}, and must have one; {_MAKE_AGAIN}")
        found = _kind(schema.field(name).type)
        if found != kind:
            raise ValueError(f"{path}: the column {name!r} holds {found}, and must hold {kind}; {_MAKE_AGAIN}")
    with _named(path):
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in read])
        table = pa.ipc.open_file(file, options=options).read_all()
        table.validate(full=True)
    return table


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What pyarrow raises for a table, as an error that names it."""
    try:
        yield
    except (_pyarrow().ArrowException, OSError, EOFError, ValueError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read as an arrow file ({error}); it is truncated, damaged or in another format: {_MAKE_AGAIN}"
        ) from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.types
    except ImportError as error:
        raise ImportError("arrow tables need pyarrow: install it with pip install 'das_gym[arrow]'") from error
    return pyarrow


def open_rows(path: Path, columns: Mapping[str, str]) -> pyarrow.Table:
    """A table without its columns of bytes, which have to be there; see `open_table`."""
    return open_table(path, columns, [name for name, kind in columns.items() if kind != "bytes"])


def read_rows(path: Path, columns: Mapping[str, str], if_empty: str = _MAKE_AGAIN) -> Iterator[dict[str, Any]]:
    """The rows of a table as plain values, checked against the kinds of their columns; images are left out.

    Args:
        path: The table.
        columns: As for `open_table`.
        if_empty: What to do about a table without rows.

    Yields:
        For each row its columns by name, without those of bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, has no rows, or a column is missing or of another kind.
    """
    table = open_rows(path, columns)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; a split needs at least one: {if_empty}")
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def _kind(arrow_type: pyarrow.DataType) -> str:
    """A column's type in words, whatever the width of its numbers and offsets."""
    types = _pyarrow().types
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return f"list of {_kind(arrow_type.value_type)}"
    kinds = {
        "text": types.is_string(arrow_type) or types.is_large_string(arrow_type),
        "bytes": types.is_binary(arrow_type) or types.is_large_binary(arrow_type),
        "integer": types.is_integer(arrow_type),
        "number": types.is_floating(arrow_type),
    }
    return next((kind for kind, fits in kinds.items() if fits), str(arrow_type))


@dataclass(frozen=True, slots=True)
class ArrowImage:
    """A picture in a cell of a table; the table is opened when the picture is.

    Attributes:
        path: The table.
        row: Its row, from 0.
        column: Its column, of bytes.
    """

    path: Path
    row: int
    column: str = "image"

    @property
    def key(self) -> str:
        """Table, row and column."""
        return f"{self.path}#{self.row}.{self.column}"

    def stamp(self) -> str:
        """Size and time of change of the table."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def open(self) -> Image:
        """The picture, mode RGB, fully decoded.

        Raises:
            FileNotFoundError: The table is gone.
            ValueError: The cell is empty or no image, or the table is damaged or has no such cell.
        """
        table = open_table(self.path, {self.column: "bytes"})
        if self.row >= table.num_rows:
            raise ValueError(f"{self.path} has no row {self.row}; it has changed: load it anew")
        cell = table[self.column][self.row].as_buffer()
        return decode_image(io.BytesIO(b"" if cell is None else cell), f"{self.column} in row {self.row} of {self.path}")


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """The images of several tables, one below the other; a place is a row.

    Attributes:
        paths: The tables.
        starts: The place of each table's first row, and the number of rows of all.
    """

    paths: tuple[Path, ...]
    starts: tuple[int, ...]

    def __call__(self, place: int) -> ArrowImage:
        """The image in a row."""
        table = bisect_right(self.starts, place) - 1
        return ArrowImage(self.paths[table], place - self.starts[table])

    def missing(self, places: Sequence[int]) -> list[int]:
        """None: an image lies in its row."""
        del places
        return []
