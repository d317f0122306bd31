"""Local tables as `datasets` reads them: parquet files, arrow files and streams.

`datasets` would cache a parquet file without a limit of its size, and would open an arrow file without a check that all of
its values lie inside of it. Files are therefore copied and validated here.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from das_gym.files import MIN_UNPACKED, cache_folder, check_plain, replacing

TABLE_SUFFIXES = (".parquet", ".arrow")

COPIED_ROWS = 64
"""Rows of a parquet file that are copied at a time."""

MAX_RATIO = 256
"""A copy may take this many times the bytes of the file: images that many rows repeat are compressed as often."""

MAGIC = b"ARROW1"
"""Begins an arrow file; an arrow stream, as `datasets` writes them, has none."""


def import_datasets() -> Any:
    """Return the library `datasets`; the ImportError names the extra that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("arrow tables and parquet files need datasets: run pip install 'das_gym[datasets]'") from error
    return datasets


def open_table(path: Path) -> Any:
    """Return a parquet or arrow file as a `datasets.Dataset` in the format `arrow`, memory-mapped and validated.

    It is kept while the file does not change. Raise ValueError, which names the file, if it is damaged.
    """
    check_plain([path])
    stat = path.stat()
    return _open(path, f"{stat.st_size} {stat.st_mtime_ns}")


@lru_cache(maxsize=256)
def _open(path: Path, stamp: str) -> Any:
    library = import_datasets()
    import pyarrow as pa

    copy = _arrow_copy(path, stamp) if path.suffix == ".parquet" else path
    with _explain_errors(path):
        file = pa.memory_map(str(copy))
        is_file = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        table = (pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)).read_all()
        table.validate(full=True)
        # With a fingerprint, or `datasets` would hash all of the table for one.
        return library.Dataset(table, fingerprint=_digest(f"{path} {stamp}")).with_format("arrow")


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file can raise anything
        kind = "a parquet file" if path.suffix == ".parquet" else "an arrow file"
        reason = " ".join(str(error).split())  # some have several lines
        raise ValueError(f"{path} cannot be read as {kind} ({reason}). It may be truncated or damaged") from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _arrow_copy(path: Path, stamp: str) -> Path:
    """Return an arrow stream in the cache folder with the rows of a parquet file, which cannot be read one by one."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    own = _digest(str(path))
    copy = cache_folder() / "parquet" / f"{own}-{_digest(stamp)}.arrow"
    limit = max(MIN_UNPACKED, MAX_RATIO * path.stat().st_size)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{own}.lock")):
        if copy.is_file():
            return copy
        for older in copy.parent.glob(f"{own}-*.arrow"):
            older.unlink(missing_ok=True)
        with _explain_errors(path):
            parquet = ParquetFile(path)
        batches = parquet.iter_batches(batch_size=COPIED_ROWS)
        schema = parquet.schema_arrow
        with replacing(copy) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while True:
                with _explain_errors(path):  # not the errors of writing the copy, such as a full disk
                    batch = next(batches, None)
                if batch is None:
                    break
                writer.write_batch(batch)
                if sink.tell() > limit:
                    raise ValueError(f"{path} unpacks to more than {limit} bytes. Divide it into shards.")
    return copy
