"""Shards of tables as Hugging Face's `datasets` writes them, parquet files and arrow streams, and the images in their cells.

Rows of a parquet file cannot be read one by one. A shard is therefore copied once into an arrow file in the cache folder,
which is memory-mapped.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from das_gym.data.arrow import import_pyarrow, named_errors, open_table, read_schema
from das_gym.data.cache import cache_folder
from das_gym.data.decoding import decode_image
from das_gym.files import MIN_UNPACKED, check_plain, replacing

if TYPE_CHECKING:
    import pyarrow
    from PIL.Image import Image

COPIED_ROWS = 64
"""Rows of a parquet file that are in memory at a time."""

MAX_RATIO = 256
"""A copy may take this many times the bytes of the file: images that many rows repeat are compressed as often."""


def shard_schema(path: Path) -> pyarrow.Schema:
    """Return the columns of a shard; ValueError: it is damaged."""
    check_plain([path])
    if path.suffix != ".parquet":
        return read_schema(path)
    import_pyarrow()
    from pyarrow import parquet

    with named_errors(path, "a parquet file"):
        return parquet.read_schema(path)


def class_names(schema: pyarrow.Schema, column: str) -> list[str] | None:
    """Return the names that the integers of a column stand for (`ClassLabel` of `datasets`), or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"] if features[column]["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def open_shard(path: Path, columns: list[str]) -> pyarrow.Table:
    """Open columns of a shard, memory-mapped; ValueError: it is damaged."""
    return open_table(_arrow_copy(path) if path.suffix == ".parquet" else path, {}, columns)


def _arrow_copy(path: Path) -> Path:
    """Return an arrow file in the cache folder with the content of a parquet file; older copies of it are removed."""
    stat = path.stat()
    texts = (str(path), f"{stat.st_size} {stat.st_mtime_ns}")
    own, stamp = (hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for t in texts)
    copy = cache_folder() / "parquet" / f"{own}-{stamp}.arrow"
    if copy.is_file():
        return copy
    pa, limit = import_pyarrow(), max(MIN_UNPACKED, MAX_RATIO * stat.st_size)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{own}.lock")):
        if copy.is_file():
            return copy
        for older in copy.parent.glob(f"{own}-*.arrow"):
            older.unlink(missing_ok=True)
        schema = shard_schema(path)
        with replacing(copy) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _parquet_batches(path):
                writer.write_batch(batch)
                if sink.tell() > limit:
                    raise ValueError(f"{path} unpacks to too much: got more than {limit} bytes")
    return copy


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with named_errors(path, "a parquet file"):
        yield from parquet.ParquetFile(path).iter_batches(batch_size=COPIED_ROWS)


def images_in(cell: Any, name: str) -> list[Any]:
    """Return the images of a cell, which errors call `name`: each a buffer with the bytes of an image file, or a path.

    The cell, a scalar of pyarrow, is an image or a list of images, each a struct of `bytes` and `path`, bytes, or a path.
    """
    types = import_pyarrow().types
    if not cell.is_valid:
        return []
    if types.is_list(cell.type) or types.is_large_list(cell.type) or types.is_fixed_size_list(cell.type):
        return [image for each in cell.values for image in images_in(each, name)]
    if types.is_struct(cell.type) and (fields := [f.name for f in cell.type if f.name in ("bytes", "path")]):
        return next(filter(None, (images_in(cell[field], name) for field in fields)), [])
    if types.is_binary(cell.type) or types.is_large_binary(cell.type):
        return [cell.as_buffer()]
    if not (types.is_string(cell.type) or types.is_large_string(cell.type)):
        expected = "a struct of `bytes` and `path`, bytes, or a path"
        raise ValueError(f"{name} is not an image: got {cell.type}, expected {expected}")
    return [cell.as_py()]


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image in a cell of a shard. Images with the same bytes have the same key, wherever they are.

    Attributes:
        path: The shard.
        row: Its row, from 0.
        column: Its column.
        index: Its place in the cell, from 0.
        digest: Identifies the bytes.
    """

    path: Path
    row: int
    column: str
    index: int
    digest: str

    @property
    def key(self) -> str:
        """The digest."""
        return f"image {self.digest}"

    def stamp(self) -> str:
        """Return nothing: the key changes with the image."""
        return ""

    def open(self) -> Image:
        """Return the image, mode RGB; raise ValueError where it is damaged or has changed."""
        cell = open_shard(self.path, [self.column])[self.column][self.row]
        name = f"{self.column} in row {self.row} of {self.path}"
        data = images_in(cell, name)[self.index]
        if digest_of(data) != self.digest:
            raise ValueError(f"{name} has changed since it was loaded")
        return decode_image(io.BytesIO(data), name)


def digest_of(data: Any) -> str:
    """Return a text that identifies the bytes in a buffer."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
