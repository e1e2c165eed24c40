"""Rows to Arrow record batches and back, vectorised: no Python loop over positions or tokens.

Arrays handed out are views of Arrow memory: read-only, never to be written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import compact
from .header import Header
from .lists import Lists
from .rounding import round_mantissa
from .rows import Capture, Row
from .schema import PAIRS, column_names, logical_type

Array = NDArray[Any]
_NO_IDS, _NO_FLAGS = np.empty(0, np.int64), np.empty(0, np.bool_)

_SCALARS: dict[str, Callable[[Row], Any]] = {
    "row_id": lambda row: row.row_id,
    "source": lambda row: row.source,
    "scored_bytes": lambda row: row.scored_bytes,
    "corpus_id": lambda row: row.corpus_id,
}


@dataclass(frozen=True, eq=False)
class Columns:
    """One decoded record batch: list columns as `Lists`, the others as arrays [rows]."""

    lists: dict[str, Lists]
    scalars: dict[str, Array]
    num_rows: int

    @property
    def nbytes(self) -> int:
        return sum(lists.values.nbytes + lists.offsets.nbytes for lists in self.lists.values())


def rows_to_batch(rows: Sequence[Row], header: Header, schema: pa.Schema) -> pa.RecordBatch:
    """One record batch of `rows`, float columns rounded to 12 mantissa bits or coded."""
    for row in rows:
        _check_shapes(row, header)
    lists = {
        name: _gathered([_values(row, name) for row in rows], name)
        for name in column_names(header)
        if name not in _SCALARS
    }
    if header.encoding == "compact":
        lists = compact.encode(lists, header)
    arrays = [
        pa.array([_SCALARS[field.name](row) for row in rows], field.type)
        if field.name in _SCALARS
        else _list_array(lists[field.name], field)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def batch_to_columns(batch: pa.RecordBatch, header: Header, ranked: bool = True) -> Columns:
    """Decode one batch. Plain: flags are unpacked, everything else is a view. Compact: see `compact.decode`.

    Raises:
        ShardError: the columns of a compact batch do not fit each other.
    """
    lists: dict[str, Lists] = {}
    scalars: dict[str, Array] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not pa.types.is_list(column.type):
            scalars[name] = column.to_numpy(zero_copy_only=False)
            continue
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.flatten()  # not .values, which ignores a slice's offset
        if column.type == PAIRS:
            numbers = values.flatten().to_numpy().reshape(-1, 2)
        else:
            numbers = values.to_numpy(zero_copy_only=False)
        lists[name] = Lists(offsets - offsets[0], numbers)
    if header.encoding == "compact":
        lists = compact.decode(lists, header, ranked)
    return Columns(lists, scalars, batch.num_rows)


def row_at(columns: Columns, r: int, header: Header) -> Row:
    """Row `r` of a decoded batch, as views."""
    at = {name: lists[r] for name, lists in columns.lists.items()}
    return Row(
        row_id=int(columns.scalars["row_id"][r]),
        input_ids=at["input_ids"],
        segment_starts=at["segment_starts"],
        prompt_runs=at["prompt_runs"],
        scored=at["scored"],
        source=str(columns.scalars["source"][r]),
        document_ids=at["document_ids"] if len(at["document_ids"]) else None,
        continued=at["continued"] if len(at["continued"]) else None,
        scored_bytes=int(columns.scalars["scored_bytes"][r]),
        capture=_capture(at, header) if header.kind == "captures" else None,
        corpus_id=int(columns.scalars["corpus_id"][r]) if "corpus_id" in columns.scalars else 0,
    )


def _capture(at: dict[str, Array], header: Header) -> Capture:
    return Capture(
        head_lengths=at["head_lengths"],
        head_ids=at["head_ids"],
        head_logprobs=at["head_logprobs"],
        rest_mass=at["rest_mass"].reshape(-1, len(header.temperatures)),
        tail_lengths=at["tail_lengths"],
        tail_ids=at["tail_ids"],
        tail_counts=at["tail_counts"],
        label_logprob=at["label_logprob"],
        label_rank=at["label_rank"],
        entropy=at["entropy"],
        tail_logprobs=at.get("tail_logprobs"),
        logsumexp=at.get("logsumexp"),
    )


def _values(row: Row, name: str) -> Array:
    """The flat values of one list column of `row`."""
    if name == "document_ids":
        return _NO_IDS if row.document_ids is None else row.document_ids
    if name == "continued":
        return _NO_FLAGS if row.continued is None else row.continued
    owner = row if hasattr(row, name) else row.capture
    return np.reshape(getattr(owner, name), -1)


def _gathered(parts: list[Array], name: str) -> Lists:
    """The lists of one column, end to end. Pairs lie flat."""
    values = np.concatenate(parts)
    kind = logical_type(name).value_type
    item = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    assert values.dtype == item.to_pandas_dtype(), f"{name}: {values.dtype} given, {item} stored"
    sizes = np.array([len(part) for part in parts], np.int64)
    return Lists(np.concatenate([[0], np.cumsum(sizes)]), values)


def _list_array(lists: Lists, field: pa.Field) -> pa.Array:
    values, offsets, item = lists.values, lists.offsets, field.type.value_type
    assert offsets[-1] < 2**31, f"{field.name}: too many values for one batch; write fewer rows a batch"
    if values.dtype == np.float32:
        values = round_mantissa(values)
    if field.type == PAIRS:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values, item.value_type), type=item)
        offsets = offsets // 2
    else:
        flat = pa.array(values, item)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=field.type)


def _check_shapes(row: Row, header: Header) -> None:
    """Our own mistakes, found before they are stored: lengths that cannot be cut again on reading."""
    place = f"row {row.row_id}"
    assert row.num_tokens >= 1, place
    assert len(row.scored) == row.num_tokens - 1, place
    assert row.prompt_runs.ndim == 2, f"{place}: prompt_runs must be [R, 2]"
    assert (row.capture is not None) == (header.kind == "captures"), f"{place}: capture in a dataset of {header.kind}"
    if row.capture is None:
        return
    capture, n = row.capture, row.num_scored
    positions = {"head_lengths", "tail_lengths", "label_logprob", "label_rank", "entropy"}
    sizes: dict[str, int] = dict.fromkeys(positions, n)
    sizes |= dict.fromkeys(("head_ids", "head_logprobs"), int(capture.head_lengths.sum(dtype=np.int64)))
    sizes |= dict.fromkeys(("tail_ids", "tail_counts"), int(capture.tail_lengths.sum(dtype=np.int64)))
    for name in set(column_names(header)) & {"logsumexp", "tail_logprobs"}:
        assert getattr(capture, name) is not None, f"{place}: {name} is missing"
        sizes[name] = n if name == "logsumexp" else sizes["tail_ids"]
    for name, size in sizes.items():
        assert len(getattr(capture, name)) == size, f"{place}: {name} has {len(getattr(capture, name))}, not {size}"
    assert capture.rest_mass.shape == (n, len(header.temperatures)), f"{place}: rest_mass {capture.rest_mass.shape}"
