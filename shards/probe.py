"""The probe file: full float16 log-probabilities of a few thousand validation positions, for exact KL later on.

One Arrow file (zstd) and its sha256 beside it (`sha256sum -c` reads it). Streamed, so the vocabulary's size times the
positions never lies in memory when writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import ShardError
from .files import publish, sha256_file, write_atomic
from .header import FORMAT_VERSION

ProbeRow = tuple[int, int, NDArray[np.float16]]
_POSITIONS_PER_BATCH = 32
_REMEDY = "run the dump again to write it anew"


@dataclass(frozen=True, eq=False)
class Probe:
    """P positions of the validation rows with their full next-token distributions."""

    val_row: NDArray[np.int64]  # [P] index into the validation dataset
    position: NDArray[np.int64]  # [P] index i of the scored position; it predicts token i + 1
    logprobs: NDArray[np.float16]  # [P, vocab_size] natural logs over the real rows, T = 1


def write_probe(path: Path, rows: Iterable[ProbeRow], vocab_size: int) -> None:
    """Write (val_row, position, logprobs float16 [vocab_size]) records; `path` appears whole, after its hash file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    schema = _schema(vocab_size)
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1), use_threads=False)
    iterator = iter(rows)
    try:
        with temporary.open("wb") as f, pa.ipc.new_file(f, schema, options=options) as out:
            while records := list(islice(iterator, _POSITIONS_PER_BATCH)):
                out.write_batch(_batch(records, schema, vocab_size))
        write_atomic(_hash_path(path), f"{sha256_file(temporary)}  {path.name}\n")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_probe(path: Path) -> Probe:
    """Read a probe file whole.

    Raises:
        ShardError: the file or its hash is missing, or they do not fit.
    """
    path = Path(path)
    for needed in (path, _hash_path(path)):
        if not needed.is_file():
            raise ShardError(f"{needed}: missing; {_REMEDY}")
    if _hash_path(path).read_bytes() != f"{sha256_file(path)}  {path.name}\n".encode():
        raise ShardError(f"{path}: damaged (its sha256 is not the one in {_hash_path(path).name}); {_REMEDY}")
    with pa.memory_map(str(path)) as source:
        return _gather(pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)))


def _gather(reader: pa.ipc.RecordBatchFileReader) -> Probe:
    """All batches in one array, without a second copy of the whole."""
    last = reader.num_record_batches - 1
    count = last * _POSITIONS_PER_BATCH + reader.get_batch(last).num_rows if last >= 0 else 0
    probe = Probe(
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty((count, reader.schema.field("logprobs").type.list_size), np.float16),
    )
    for index in range(last + 1):
        batch = reader.get_batch(index)
        at = slice(index * _POSITIONS_PER_BATCH, index * _POSITIONS_PER_BATCH + batch.num_rows)
        probe.val_row[at] = batch.column("val_row").to_numpy()
        probe.position[at] = batch.column("position").to_numpy()
        probe.logprobs[at] = batch.column("logprobs").flatten().to_numpy().reshape(batch.num_rows, -1)
    return probe


def _batch(records: list[ProbeRow], schema: pa.Schema, vocab_size: int) -> pa.RecordBatch:
    val_rows, positions, logprobs = zip(*records, strict=True)
    for values in logprobs:
        assert values.dtype == np.float16, values.dtype
        assert values.shape == (vocab_size,), values.shape
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(logprobs)), type=schema.field("logprobs").type)
    return pa.RecordBatch.from_arrays(
        [pa.array(val_rows, pa.int64()), pa.array(positions, pa.int64()), flat], schema=schema
    )


def _schema(vocab_size: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("val_row", pa.int64(), metadata={"doc": "index of the row in the validation dataset"}),
            pa.field("position", pa.int64(), metadata={"doc": "scored position i; it predicts token i + 1"}),
            pa.field(
                "logprobs",
                pa.list_(pa.float16(), vocab_size),
                metadata={"doc": "natural log-probabilities of all real vocabulary rows, T = 1"},
            ),
        ],
        metadata={"format": "minicodformer-probe", "format_version": str(FORMAT_VERSION)},
    )


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
