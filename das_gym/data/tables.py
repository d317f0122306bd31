"""Read tables: arrow files and streams, parquet files as Hugging Face's `datasets` writes them, and images in their cells.

Rows of a parquet file cannot be read one by one. It is therefore copied once into an arrow file in the cache folder, which
is memory-mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from das_gym.files import MIN_UNPACKED, cache_folder, check_plain, replacing

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1024

COPIED_ROWS = 64

MAX_RATIO = 256
"""A copy may take this many times the bytes of the file: images that many rows repeat are compressed as often."""

MAGIC = b"ARROW1"
"""Begins an arrow file; an arrow stream, as `datasets` writes them, has none."""


def import_pyarrow() -> Any:
    """Return pyarrow; the ImportError names the extra that installs it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
        import pyarrow.types
    except ImportError as error:
        raise ImportError("arrow tables and parquet files need pyarrow: run pip install 'das_gym[arrow]'") from error
    return pyarrow


@contextlib.contextmanager
def explain_table_errors(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into a ValueError that names the file."""
    try:
        yield
    except (import_pyarrow().ArrowException, OSError, EOFError, ValueError, LookupError) as error:
        kind = "a parquet file" if path.suffix == ".parquet" else "an arrow file"
        reason = " ".join(str(error).split())  # pyarrow's has several lines
        raise ValueError(f"{path} cannot be read as {kind} ({reason}). It may be truncated or damaged") from error


def read_schema(path: Path) -> pyarrow.Schema:
    """Return the columns of a table; ValueError: it is damaged."""
    check_plain([path])
    with explain_table_errors(path):
        schema = import_pyarrow().parquet.read_schema(path) if path.suffix == ".parquet" else _open_reader(path).schema
        _ = schema.names  # fails for a name that is not UTF-8
    return schema


def _open_reader(path: Path, **options: Any) -> Any:
    pa = import_pyarrow()
    file = pa.memory_map(str(path))
    is_file = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return pa.ipc.open_file(file, **options) if is_file else pa.ipc.open_stream(file, **options)


def open_table(path: Path, read: Iterable[str], kinds: Mapping[str, str] | None = None) -> pyarrow.Table:
    """Open the columns `read` of a table, memory-mapped and validated. It is kept while the file does not change.

    `kinds` are columns that must exist: `bytes`, `integer`, `number`, `text`, or `list of ...` these. Raise ValueError
    where they do not, and for a damaged file.
    """
    check_plain([path])
    stat = path.stat()
    return _open(path, tuple(read), tuple((kinds or {}).items()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _open(path: Path, read: tuple[str, ...], kinds: tuple[tuple[str, str], ...], size: int, changed: int) -> pyarrow.Table:
    del size, changed  # parts of the cache's key
    pa = import_pyarrow()
    schema = read_schema(path)
    if not schema.names:
        return pa.table({})
    for name, kind in kinds:
        found = [_kind(field.type) for field in schema if field.name == name]
        if found != [kind]:
            got = " and ".join(found) or f"columns {', '.join(schema.names)}"
            raise ValueError(f"{path}: wrong or missing column `{name}`: got {got}, expected one column of {kind}")
    copy = _arrow_copy(path) if path.suffix == ".parquet" else path
    with explain_table_errors(path):
        options = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(name) for name in read])
        table = _open_reader(copy, options=options).read_all()
        table.validate(full=True)
    return table


def _kind(arrow_type: pyarrow.DataType) -> str:
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


def _arrow_copy(path: Path) -> Path:
    stat = path.stat()
    texts = (str(path), f"{stat.st_size} {stat.st_mtime_ns}")
    own, stamp = (hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for t in texts)
    copy = cache_folder() / "parquet" / f"{own}-{stamp}.arrow"
    pa = import_pyarrow()
    limit = max(MIN_UNPACKED, MAX_RATIO * stat.st_size)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{own}.lock")):
        if copy.is_file():
            return copy
        for older in copy.parent.glob(f"{own}-*.arrow"):
            older.unlink(missing_ok=True)
        schema = read_schema(path)
        with replacing(copy) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _parquet_batches(path):
                writer.write_batch(batch)
                if sink.tell() > limit:
                    raise ValueError(f"{path} unpacks to more than {limit} bytes. Divide it into shards.")
    return copy


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    with explain_table_errors(path):  # not the errors of writing the copy, such as a full disk
        yield from import_pyarrow().parquet.ParquetFile(path).iter_batches(batch_size=COPIED_ROWS)


def plain_rows(table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as plain values by column."""
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def class_names(schema: pyarrow.Schema, column: str) -> list[str] | None:
    """Return the names that the integers of a column stand for (`ClassLabel` of `datasets`), or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"] if features[column]["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def cell_images(cell: Any, name: str) -> list[Any]:
    """Return the images of a cell, which errors call `name`: each a buffer with the bytes of an image file, or a path.

    The cell, a scalar of pyarrow, is an image or a list of images, each a struct of `bytes` and `path`, bytes, or a path.
    """
    types = import_pyarrow().types
    if not cell.is_valid:
        return []
    if types.is_list(cell.type) or types.is_large_list(cell.type) or types.is_fixed_size_list(cell.type):
        found = [cell_images(each, name) for each in cell.values]
        if [] in found:
            raise ValueError(f"{name} has an empty place: image {found.index([])} of {len(found)} is null. Remove it.")
        return [image for images in found for image in images]
    if types.is_struct(cell.type) and (fields := [f.name for f in cell.type if f.name in ("bytes", "path")]):
        return next(filter(None, (cell_images(cell[field], name) for field in fields)), [])
    if types.is_binary(cell.type) or types.is_large_binary(cell.type):
        return [cell.as_buffer()]
    if not (types.is_string(cell.type) or types.is_large_string(cell.type)):
        expected = "a struct of `bytes` and `path`, bytes, or a path"
        raise ValueError(f"{name} is not an image: got {cell.type}, expected {expected}")
    return [cell.as_py()]
