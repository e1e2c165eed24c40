"""Compressed bytes of each column of an Arrow IPC file, read from its metadata: no value is decompressed.

The metadata are flatbuffers; of these only the few tables are walked that lead to the buffers' lengths
(https://arrow.apache.org/docs/format/Columnar.html, "IPC File Format").
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path

import pyarrow as pa

from .errors import ShardError

OVERHEAD = "(file)"
"""Name for what belongs to no column: schema, metadata, padding."""
_BUFFERS, _RECORD_BATCHES, _HEADER = 2, 3, 2  # field numbers in RecordBatch, Footer, Message


def column_bytes(path: Path) -> dict[str, int]:
    """Bytes of every stored column, in schema order, and `OVERHEAD`; they sum to the file's size.

    Raises:
        ShardError: not an Arrow IPC file.
    """
    try:
        with pa.memory_map(str(path)) as source:
            schema = pa.ipc.open_file(source).schema
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: not readable as an Arrow file ({error}); verify the dataset") from None
    owners = [field.name for field in schema for _ in range(_num_buffers(field.type))]
    sizes: Counter[str] = Counter({field.name: 0 for field in schema})
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for lengths in _batches(data):
            assert len(lengths) == len(owners), (path, len(lengths), len(owners))
            for name, length in zip(owners, lengths, strict=True):
                sizes[name] += length
        total = len(data)
    return dict(sizes) | {OVERHEAD: total - sum(sizes.values())}


def _num_buffers(kind: pa.DataType) -> int:
    """Buffers that a value of this type has in a record batch, children included."""
    children = sum(_num_buffers(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind) or pa.types.is_struct(kind):
        return 1 + children
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return 2 + children
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return 3
    assert pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind), kind
    return 2


def _batches(data: mmap.mmap) -> list[list[int]]:
    """Buffer lengths of each record batch."""
    (footer_size,) = struct.unpack_from("<i", data, len(data) - 10)  # before the closing "ARROW1"
    footer = _Table.root(data, len(data) - 10 - footer_size)
    found = []
    for place in footer.vector(_RECORD_BATCHES, 24):  # struct Block: offset, metadata length, body length
        (offset,) = struct.unpack_from("<q", data, place)
        message = _Table.root(data, offset + 8)  # after the continuation mark and the metadata's size
        buffers = message.table(_HEADER).vector(_BUFFERS, 16)  # struct Buffer: offset, length
        found.append([struct.unpack_from("<q", data, place + 8)[0] for place in buffers])
    return found


class _Table:
    """A flatbuffer table at `position`; fields are found by number."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data, self._position = data, position

    @staticmethod
    def root(data: mmap.mmap, start: int) -> _Table:
        return _Table(data, start + struct.unpack_from("<I", data, start)[0])

    def table(self, number: int) -> _Table:
        place = self._field(number)
        return _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def vector(self, number: int, item_size: int) -> list[int]:
        """Positions of the items; none when the field is absent."""
        if not (place := self._field(number)):
            return []
        start = place + struct.unpack_from("<I", self._data, place)[0]
        (count,) = struct.unpack_from("<I", self._data, start)
        return [start + 4 + i * item_size for i in range(count)]

    def _field(self, number: int) -> int:
        vtable = self._position - struct.unpack_from("<i", self._data, self._position)[0]
        (size,) = struct.unpack_from("<H", self._data, vtable)
        place = 4 + 2 * number
        offset = struct.unpack_from("<H", self._data, vtable + place)[0] if place < size else 0
        return self._position + offset if offset else 0
