"""Arrow tables as the scripts of ViLT and METER write them: finding them, reading their rows, and their images.

A data root holds the tables of one or of several tasks. A single table may be the data root, which is needed where a folder
holds two data sets of one task.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das_gym.data.bad_examples import BadExamples
from das_gym.data.decoding import decode_image
from das_gym.data.entries import some
from das_gym.files import absolute, at_home, check_plain

if TYPE_CHECKING:
    import pyarrow
    from PIL.Image import Image

BATCH_ROWS = 1024

MAGIC = b"ARROW1"
"""Begins an arrow file; an arrow stream, as `datasets` writes them, has none."""


@dataclass(frozen=True, slots=True)
class ArrowFormat:
    """How the arrow tables of a task are named, and their columns.

    Attributes:
        task: The task.
        prefixes: How the file names begin; `_<split>.arrow` follows.
        columns: The kind of each column that is read: `bytes`, `integer`, `number`, `text`, or `list of ...` these.
        raw: Patterns of the files of the task's own format, relative to the data root.
    """

    task: str
    prefixes: tuple[str, ...]
    columns: Mapping[str, str]
    raw: tuple[str, ...]

    def is_in(self, data_root: str | Path) -> bool:
        """Return whether a data root holds tables of this format, or is one; ValueError: it holds both formats."""
        root = at_home(data_root)
        if root.suffix == ".arrow":
            return True
        tables = [path.name for prefix in self.prefixes for path in sorted(root.glob(f"{prefix}_*.arrow"))]
        raw = [str(path.relative_to(root)) for pattern in self.raw for path in sorted(root.glob(pattern))]
        if tables and raw:
            raise ValueError(
                f"{root} holds data of {self.task} twice: got arrow tables ({tables[0]}) and original files ({raw[0]}), "
                f"expected one of them. For the tables pass `data_root={root / tables[0]}`"
            )
        return bool(tables)

    def find(self, data_root: str | Path) -> ArrowTables:
        """Return the tables in a data root, which must hold one data set of the task, or be one of its tables."""
        root = absolute(data_root)
        patterns = " or ".join(f"{prefix}_<split>.arrow" for prefix in self.prefixes)
        if root.suffix == ".arrow":
            found = [prefix for prefix in self.prefixes if root.name.startswith(f"{prefix}_")]
            if not found:
                raise ValueError(f"`data_root` is not a table of {self.task}: got {root.name}, expected {patterns}")
            return ArrowTables(root.parent, found[0])
        found = [prefix for prefix in self.prefixes if any(root.glob(f"{prefix}_*.arrow"))]
        if len(found) > 1:
            raise ValueError(f"{root} holds several data sets: got {' and '.join(found)}. Pass one table as `data_root`")
        if not found:
            raise FileNotFoundError(f"{root} holds no table {patterns}")
        return ArrowTables(root, found[0])


@dataclass(frozen=True, slots=True)
class ArrowTables:
    """The tables of one data set.

    Attributes:
        folder: Where they are, absolute.
        prefix: How their names begin.
    """

    folder: Path
    prefix: str

    def path(self, split: str) -> Path:
        """Return the path of the table of a split, which need not exist."""
        return self.folder / f"{self.prefix}_{split}.arrow"

    def require(self, *splits: str) -> Path:
        """Return the first table that exists of some splits; raise FileNotFoundError for none."""
        for split in splits:
            if self.path(split).is_file():
                return self.path(split)
        found = some(sorted(path.name for path in self.folder.glob(f"{self.prefix}_*.arrow")))
        raise FileNotFoundError(f"{self.path(splits[0])} does not exist: got {found or 'no table'}")


def read_items(path: Path, columns: Mapping[str, str], bad: BadExamples) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a table whose rows are an image with lists of questions, answers or captions.

    Columns of bytes are checked and left out. `bad` receives rows whose lists are empty or differ in length.

    Yields:
        The place of an entry, for errors, and its values: one of each list, those of the other columns, `row`, and its
            `number` in the row.
    """
    lists = [name for name, kind in columns.items() if kind.startswith("list")]
    for row, values in enumerate(read_rows(path, columns)):
        where = f"{path}: row {row}"
        lengths = [len(values[name] or ()) for name in lists]
        if not lengths[0] or len(set(lengths)) > 1:
            got = ", ".join(f"{length} in {name}" for name, length in zip(lists, lengths, strict=True))
            error = ValueError(f"{where}: lists of different lengths: got {got}, expected equal numbers of one or more")
            bad.report(error, max(1, *lengths))
            continue
        for number, entry in enumerate(zip(*(values[name] for name in lists), strict=True)):
            yield (
                f"{where}, entry {number}",
                {**values, **dict(zip(lists, entry, strict=True)), "row": row, "number": number},
            )


def read_rows(path: Path, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, one or more, as plain values by column, without the columns of bytes."""
    table = open_table(path, columns, [name for name, kind in columns.items() if kind != "bytes"])
    if not table.num_rows:
        raise ValueError(f"{path} has no rows, expected one or more")
    yield from plain_rows(table)


def plain_rows(table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as plain values by column."""
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def open_table(path: Path, columns: Mapping[str, str], read: Iterable[str] | None = None) -> pyarrow.Table:
    """Open columns of a table, memory-mapped and validated. The result is kept while the file does not change.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: It is truncated, damaged or no arrow file, or one of `columns` is missing or of another kind.
    """
    check_plain([path])
    stat = path.stat()
    return _open(path, tuple(columns.items()), tuple(columns if read is None else read), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _open(path: Path, columns: tuple[tuple[str, str], ...], read: tuple[str, ...], size: int, changed: int) -> pyarrow.Table:
    del size, changed  # parts of the cache's key
    pa = import_pyarrow()
    schema = read_schema(path)
    names = schema.names
    if not names:
        return pa.table({})
    for name, kind in columns:
        kinds = [_kind(field.type) for field in schema if field.name == name]
        if kinds != [kind]:
            got = " and ".join(kinds) or f"columns {', '.join(names)}"
            raise ValueError(f"{path}: wrong or missing column `{name}`: got {got}, expected one column of {kind}")
    with named_errors(path):
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in read])
        table = _open_reader(path, options=options).read_all()
        table.validate(full=True)
    return table


def read_schema(path: Path) -> pyarrow.Schema:
    """Return the columns of an arrow file or stream; ValueError: it is damaged."""
    with named_errors(path):
        schema = _open_reader(path).schema
        _ = schema.names  # fails for a name that is not UTF-8
    return schema


def _open_reader(path: Path, **options: Any) -> Any:
    """Return pyarrow's reader of a file, or of a stream, which lacks the magic number."""
    pa = import_pyarrow()
    file = pa.memory_map(str(path))
    is_file = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file, **options)


@contextlib.contextmanager
def named_errors(path: Path, kind: str = "an arrow file") -> Iterator[None]:
    """Turn pyarrow's errors into a ValueError that names the file."""
    try:
        yield
    except (import_pyarrow().ArrowException, OSError, EOFError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as {kind} ({error}). It may be truncated or damaged") from error


def import_pyarrow() -> Any:
    """Return pyarrow, or name the extra that installs it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.types
    except ImportError as error:
        raise ImportError("arrow tables and parquet files need pyarrow: run pip install 'das_gym[arrow]'") from error
    return pyarrow


def _kind(arrow_type: pyarrow.DataType) -> str:
    """Return the kind of a column, whatever the width of its numbers and offsets."""
    types = import_pyarrow().types
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return f"list of {_kind(arrow_type.value_type)}"
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return "text"
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return "bytes"
    if types.is_integer(arrow_type):
        return "integer"
    return "number" if types.is_floating(arrow_type) else str(arrow_type)


@dataclass(frozen=True, slots=True)
class ArrowImage:
    """An image in a cell of a table, which is opened with the image.

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
        """Return size and modification time of the table."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def open(self) -> Image:
        """Return the image, mode RGB; raise ValueError where table or cell is damaged, empty or missing."""
        table = open_table(self.path, {self.column: "bytes"})
        if self.row >= table.num_rows:
            raise ValueError(f"{self.path} has no row {self.row}. It has changed since it was loaded")
        cell = table[self.column][self.row].as_buffer()
        return decode_image(io.BytesIO(b"" if cell is None else cell), f"{self.column} in row {self.row} of {self.path}")
