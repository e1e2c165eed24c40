"""The Arrow schema of a shard: column names, types and the documentation that travels inside every file.

`columns` fills these columns from rows and back; `FORMAT.md` is the spec in prose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from .compact import DECODING, plane_sizes
from .files import canonical_json
from .header import CORPUS_ID, FORMAT_NAME, FORMAT_VERSION, OPTIONAL_COLUMNS, Header


@dataclass(frozen=True)
class ShardPlan:
    """One planned shard: the rows [first_row, first_row + num_rows)."""

    index: int
    first_row: int
    num_rows: int

    @property
    def file(self) -> str:
        return f"shard-{self.index:05d}.arrow"


Field = tuple[str, pa.DataType, str]
"""Name, type, documentation."""

PAIRS = pa.list_(pa.list_(pa.int32(), 2))

_ROW_FIELDS: tuple[Field, ...] = (
    ("row_id", pa.uint64(), "index in the prepared corpus; identity is (corpus fingerprint, row_id)"),
    ("input_ids", pa.list_(pa.int32()), "T tokens; position i predicts token i + 1, its label"),
    ("segment_starts", pa.list_(pa.int32()), "G first indices of segments, the first is 0; context begins anew there"),
    ("prompt_runs", PAIRS, "half-open token ranges [start, end) that arrive whole (a prompt, a user turn)"),
    ("scored", pa.list_(pa.bool_()), "T - 1 flags: which positions are scored; n of them are true"),
    ("source", pa.string(), "where the text came from; a row holds one source"),
    ("document_ids", pa.list_(pa.int64()), "G ids: the document of each segment; empty: not known"),
    ("continued", pa.list_(pa.bool_()), "G flags: the segment goes on from an earlier one; empty: not known"),
    ("scored_bytes", pa.int64(), "UTF-8 bytes that the scored labels stand for"),
    (CORPUS_ID, pa.int32(), "index in header.extra.corpora of the corpus that row_id belongs to (merged datasets)"),
)

_CAPTURE_FIELDS: tuple[Field, ...] = (
    ("head_lengths", pa.list_(pa.uint16()), "n: ids in each position's head"),
    ("head_ids", pa.list_(pa.int32()), "sum(head_lengths): the most likely ids, position-major, most likely first"),
    ("head_logprobs", pa.list_(pa.float32()), "sum(head_lengths): their natural log-probabilities at T = 1"),
    (
        "rest_mass",
        pa.list_(pa.float32()),
        "n x temperatures: probability outside the head, position-major, T = 1 first",
    ),
    ("tail_lengths", pa.list_(pa.uint16()), "n: distinct ids drawn from outside each position's head"),
    ("tail_ids", pa.list_(pa.int32()), "sum(tail_lengths): the drawn ids, position-major, ascending in a position"),
    ("tail_counts", pa.list_(pa.uint16()), "sum(tail_lengths): how often each was drawn, at least 1"),
    ("label_logprob", pa.list_(pa.float32()), "n: log-probability of the label, inside the head or not"),
    ("label_rank", pa.list_(pa.uint32()), "n: ids more likely than the label (ties: smaller ids count as more likely)"),
    ("entropy", pa.list_(pa.float32()), "n: entropy of the full distribution, nats"),
    ("tail_logprobs", pa.list_(pa.float32()), "sum(tail_lengths): log-probabilities of the drawn ids"),
    ("logsumexp", pa.list_(pa.float32()), "n: log-normaliser; raw logit = log-probability + logsumexp"),
)

ABOUT = (
    "Arrow rows are packed token sequences. Lists of captures are flat and position-major: they follow the true flags"
    " of `scored` in order; cut them with cumulative sums of head_lengths and tail_lengths. All probabilities are of"
    " the real vocabulary (ids below header.vocab_size). Target at T = 1 for one scored position:"
    " q(id) = (1 - rest) * softmax(head_logprobs)(id) for head ids, plus rest * count / m for tail ids, m = sum of the"
    " position's tail_counts; with m = 0 the rest is a bucket."
)
_PLAIN = " float32 columns are rounded to 12 mantissa bits."
_COMPACT = (
    " This file is compact: the metadata entry `decoding` says how the columns named here come out of those stored."
)


def column_names(header: Header) -> tuple[str, ...]:
    """Columns that a shard of this header has, in order."""
    unwanted = {*OPTIONAL_COLUMNS, CORPUS_ID} - set(header.optional_columns)
    names = tuple(name for name, _, _ in _ROW_FIELDS if name not in unwanted)
    if header.kind == "rows":
        return names
    return names + tuple(name for name, _, _ in _CAPTURE_FIELDS if name not in unwanted)


def arrow_schema(header: Header, plan: ShardPlan, rows_per_batch: int) -> pa.Schema:
    """The schema of one shard file; its metadata says everything the manifest does, except hashes and counts."""
    wanted = set(column_names(header))
    shard = {
        "index": plan.index,
        "first_row": plan.first_row,
        "num_rows": plan.num_rows,
        "rows_per_batch": rows_per_batch,
    }
    metadata = {
        "format": FORMAT_NAME,
        "format_version": str(FORMAT_VERSION),
        "header": canonical_json(header.to_json()),
        "shard": canonical_json(shard),
        "about": ABOUT + (_COMPACT if header.encoding == "compact" else _PLAIN),
    }
    fields = [field for field in (*_ROW_FIELDS, *_CAPTURE_FIELDS) if field[0] in wanted]
    if header.encoding == "compact":
        metadata["decoding"] = DECODING
        fields = _compact_fields(fields, header)
    return pa.schema(
        [pa.field(name, kind, nullable=False, metadata={"doc": doc}) for name, kind, doc in fields], metadata=metadata
    )


def logical_type(name: str) -> pa.DataType:
    """Arrow type of a logical column, whatever the encoding."""
    return next(kind for field, kind, _ in (*_ROW_FIELDS, *_CAPTURE_FIELDS) if field == name)


def _compact_fields(fields: list[Field], header: Header) -> list[Field]:
    """The planes in the place of the columns that they hold."""
    sizes = plane_sizes(header)
    stored: list[Field] = []
    for name, kind, doc in fields:
        name, doc = (
            ("head_values", "steps of 1/16 nat below the head's maximum") if name == "head_logprobs" else (name, doc)
        )
        if name == "head_ids":
            stored += _planes("id_order", sizes["id_order"], "ids in a better order than that of their numbers")
        stored += _planes(name, sizes[name], doc) if name in sizes else [(name, kind, doc)]
    return stored


def _planes(name: str, size: int, doc: str) -> list[Field]:
    return [(f"{name}_{k}", pa.list_(pa.uint8()), f"byte {k} of the codes of {name} ({doc})") for k in range(size)]


def schema_difference(found: pa.Schema, expected: pa.Schema) -> str | None:
    """In words, the first thing by which a file's schema is not the expected one; None when they are equal."""
    if found.equals(expected, check_metadata=True):
        return None
    ours, theirs = expected.metadata, found.metadata or {}
    if theirs.get(b"format") != ours[b"format"]:
        return "it is not a shard of this format"
    if theirs.get(b"format_version") != ours[b"format_version"]:
        return f"its format version is {theirs.get(b'format_version', b'?').decode()}, not {FORMAT_VERSION}"
    if theirs.get(b"header") != ours[b"header"]:
        fields = Header.from_json(json.loads(theirs[b"header"])).difference(
            Header.from_json(json.loads(ours[b"header"]))
        )
        return f"it was written with other settings ({fields})"
    if theirs.get(b"shard") != ours[b"shard"]:
        return f"it is another shard ({theirs[b'shard'].decode()})"
    if found.names != expected.names:
        return f"its columns are {found.names}, not {expected.names}"
    return "its column types or documentation differ"
