"""What the columns of an arrow file unpack to, by its own headers: nothing is unpacked.

Headers are flatbuffers: https://flatbuffers.dev/internals and format/{File,Message}.fbs of Apache Arrow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

DICTIONARY_BATCH = 2
"""The kind of a message; what it tells of its columns lies one level deeper than in the other kind, a record batch."""

OF_OLD = b"experimental_compression"
"""Where arrow 0.17 said that columns are compressed."""


class _Table:
    """A table of a flatbuffer: where its fields are.

    Raises:
        struct.error: they lie outside.
    """

    def __init__(self, content: Any, at: int = 0, root: bool = False) -> None:
        self.content = content
        self.at = at + (self._number("<I", at) if root else 0)
        self.vtable = self.at - self._number("<i", self.at)
        self.size = self._number("<H", self.vtable)

    def _number(self, kind: str, at: int) -> int:
        value: int = struct.unpack_from(kind, self.content, at)[0]
        return value

    def place(self, field: int) -> int | None:
        """Where a field is; None = it is left out."""
        entry = 4 + 2 * field
        found = self._number("<H", self.vtable + entry) if entry + 2 <= self.size else 0
        return self.at + found if found else None

    def number(self, field: int) -> int:
        """A field of one byte."""
        at = self.place(field)
        return 0 if at is None else self._number("<B", at)

    def table(self, field: int) -> _Table:
        """A field that is a table.

        Raises:
            ValueError: it is left out.
        """
        at = self.place(field)
        if at is None:
            raise ValueError(f"a header lacks its field {field}")
        return _Table(self.content, at + self._number("<I", at))

    def structs(self, field: int, kind: str) -> Iterator[tuple[Any, ...]]:
        """The parts of a field that is a vector."""
        at = self.place(field)
        if at is None:
            return
        at += self._number("<I", at)
        for number in range(self._number("<I", at)):
            yield struct.unpack_from(kind, self.content, at + 4 + number * struct.calcsize(kind))


def unpacked_size(file: pyarrow.Buffer) -> int:
    """Bytes that all compressed buffers of an arrow file say they unpack to.

    Raises:
        ValueError, LookupError, EOFError, struct.error, pyarrow.ArrowException: it is damaged.
    """
    import pyarrow as pa

    content = memoryview(file)
    end = len(content) - 10  # behind it the footer's length and a magic word
    (length,) = struct.unpack_from("<I", content, end)
    footer = _Table(content[end - length : end], root=True)
    total = 0
    for field in (2, 3):  # dictionaries, record batches
        for offset, header, body in footer.structs(field, "<qi4xq"):
            message = pa.ipc.read_message(file.slice(offset, header + body))
            total += _unpacked(bytes(message.metadata), memoryview(message.body or b""))
    return total


def _unpacked(header: bytes, body: memoryview) -> int:
    """As `unpacked_size`, of a message."""
    message = _Table(header, root=True)
    batch = message.table(2)
    if message.number(1) == DICTIONARY_BATCH:
        batch = batch.table(1)
    if batch.place(3) is None and OF_OLD not in header:
        return 0
    buffers = (struct.unpack_from("<q", body, offset)[0] for offset, length in batch.structs(2, "<qq") if length)
    return sum(max(0, size) for size in buffers)
