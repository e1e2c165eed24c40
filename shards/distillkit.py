"""Captures in the layout that DistillKit's offline trainer takes: ids and log-probabilities of K tokens a position.

Of its two forms this writes the uncompressed one, the columns `token_ids` and `top_values`: it needs no bit packing of
theirs, and no values are lost to its polynomials. Everything else about a capture is lost; `LOST` says what.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .errors import ShardError
from .export import Progress, shard_rows
from .files import appears_whole
from .header import Header
from .reader import open_dataset
from .rows import Row

ABSENT = -100.0
"""Log-probability of a slot that holds no id (its probability is 0 in every float type)."""
IGNORED = -100
"""The label that losses leave out."""

LOST = [
    "the draws from outside the head: the target is a truncated head, biased where the rest mass is large",
    "rest mass, log-probability and rank of the label, entropy: the trainer guesses the rest as 1 - sum of the head",
    "segment boundaries: attention runs across the documents packed into a row",
    "prompt runs, sources, document ids, row ids and all fingerprints but those in README.md",
    "the first and the last position of each scored run: one mask serves labels (position i + 1) and targets "
    "(position i) there, so only positions on which both agree are left in",
]

SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.uint64())),
        pa.field("labels", pa.list_(pa.int64())),
        pa.field("attention_mask", pa.list_(pa.int64())),
        pa.field("token_ids", pa.list_(pa.list_(pa.int64()))),
        pa.field("top_values", pa.list_(pa.list_(pa.float32()))),
    ]
)


def export_distillkit(sources: Mapping[str, Path], out: Path, progress: Progress | None = None) -> list[str]:
    """`out/data_<n>.parquet`, one a shard, all rows padded to max_length, and a README.md. Returns what is lost.

    Raises:
        ShardError: more than one dataset, no captures, or heads without ids.
    """
    if len(sources) != 1:
        raise ShardError(f"{', '.join(map(str, sources.values()))}: DistillKit takes one split a folder; name one")
    dataset = open_dataset(next(iter(sources.values())))
    header = dataset.header
    size = header.head_size + len(header.must_keep)
    if header.kind != "captures" or size == 0:
        what = "no captures" if header.kind != "captures" else "no heads (head_size 0)"
        raise ShardError(f"{dataset.folder}: {what}, and DistillKit's layout has nothing else; export another dataset")
    shards = dataset.manifest.shards
    with appears_whole(out) as folder:
        for number, entry in enumerate(shards):
            with pq.ParquetWriter(folder / f"data_{number}.parquet", SCHEMA, compression="zstd") as writer:
                for block in shard_rows(dataset, entry):
                    writer.write_batch(_batch(block, header.max_length, size))
            if progress is not None:
                progress(number + 1, len(shards))
        (folder / "README.md").write_text(_readme(header, size), encoding="utf-8")
    return LOST


def _batch(rows: list[Row], length: int, size: int) -> pa.RecordBatch:
    columns: dict[str, list[NDArray[Any]]] = {field.name: [] for field in SCHEMA}
    for row in rows:
        for name, values in _columns(row, length, size).items():
            columns[name].append(values)
    arrays = []
    for field in SCHEMA:
        values = np.concatenate(columns[field.name])
        if values.ndim == 2:
            flat = pa.array(values.ravel(), field.type.value_type.value_type)
            inner = pa.ListArray.from_arrays(_ends(len(values), size), flat)
        else:
            inner = pa.array(values, field.type.value_type)
        arrays.append(pa.ListArray.from_arrays(_ends(len(rows), length), inner))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _ends(count: int, size: int) -> pa.Array:
    return pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(size))


def _columns(row: Row, length: int, size: int) -> dict[str, NDArray[Any]]:
    """One row, padded: tokens, labels and mask [length]; ids and log-probabilities [length, size]."""
    capture = row.capture
    assert capture is not None
    tokens = np.zeros(length, np.uint64)
    tokens[: row.num_tokens] = row.input_ids
    scored = np.zeros(length, np.bool_)
    scored[: row.num_tokens - 1] = row.scored
    both = scored & np.append(False, scored[:-1])
    ids = np.tile(np.arange(size, dtype=np.int64), (length, 1))
    values = np.full((length, size), ABSENT, np.float32)
    n = capture.num_positions
    lengths = capture.head_lengths.astype(np.int64)
    owner = np.repeat(np.arange(n), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = row.scored_positions()[owner]
    ids[at, place] = capture.head_ids
    values[at, place] = capture.head_logprobs
    return {
        "input_ids": tokens,
        "labels": np.where(both, tokens.astype(np.int64), IGNORED),
        "attention_mask": (np.arange(length) < row.num_tokens).astype(np.int64),
        "token_ids": ids,
        "top_values": values,
    }


def _readme(header: Header, size: int) -> str:
    prints = "\n".join(f"- {name}: {value}" for name, value in header.fingerprints.items())
    lost = "\n".join(f"- {text}" for text in LOST)
    return f"""# Captures in DistillKit's layout

Made by `minicodformer shards export --to distillkit`. Every row has {header.max_length} positions with {size} ids each
(`token_ids`, `top_values`: natural log-probabilities at temperature 1, {ABSENT} where a head is shorter), `labels` with
{IGNORED} where nothing is learned. Position i predicts token i + 1. Real vocabulary: {header.vocab_size} ids.

Use it as a prepacked dataset (`dataset.prepacked: true`, this folder as `repo_id`, `remove_unused_columns: false`) with
a teacher of kind `dataset` and missing probability `symmetric_uniform`; the default, zero, renormalises the head.

## What is lost

{lost}

## Fingerprints

{prints}
"""
