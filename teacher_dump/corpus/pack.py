"""Pieces -> rows: which pieces share a row (`pack`) and what the row then holds (`assemble`). No tokenising here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.rows import Row

from .pieces import Piece

OPEN_ROWS = 64
"""Rows that may wait for a fitting piece, per source: bounds memory and the distance pieces are moved."""


def pack(pieces: Iterable[tuple[int, int, int]], max_length: int, open_rows: int = OPEN_ROWS) -> Iterator[list[int]]:
    """First fit with a bounded number of open rows.

    Args:
        pieces: (index, length, source) in packing order, length <= max_length.
        max_length: tokens in a row, at most.
        open_rows: see `OPEN_ROWS`.

    Yields:
        The indices of one row's pieces, in order; one source a row. The same pieces give the same rows.
    """
    waiting: dict[int, list[tuple[int, list[int]]]] = {}  # source -> [(room left, indices)], oldest first
    for index, length, source in pieces:
        assert 2 <= length <= max_length, (length, max_length)
        rows = waiting.setdefault(source, [])
        slot = next((i for i, (room, _) in enumerate(rows) if room >= length), None)
        if slot is None:
            rows.append((max_length - length, [index]))
            slot = len(rows) - 1
        else:
            room, indices = rows[slot]
            rows[slot] = (room - length, [*indices, index])
        if rows[slot][0] < 2:  # no piece is that short
            yield rows.pop(slot)[1]
        elif len(rows) > open_rows:
            yield rows.pop(0)[1]
    for rows in waiting.values():
        for _, indices in rows:
            yield indices


def assemble(
    row_id: int,
    pieces: Sequence[Piece],
    *,
    source: str,
    documents: Sequence[int],
    byte_lengths: NDArray[np.int32],
    with_runs: bool = True,
) -> Row:
    """One row out of its pieces; position i is scored when token i + 1 is a label of the same segment.

    Args:
        row_id: index in the split.
        pieces: in order; lengths sum to at most the row's length.
        source: where all of them come from.
        documents: [len(pieces)] ordinals of their records.
        byte_lengths: [vocabulary] UTF-8 bytes a token, for `scored_bytes`.
        with_runs: record prompt runs.
    """
    starts = np.cumsum([0, *(len(p.tokens) for p in pieces)])[:-1]
    tokens = np.concatenate([p.tokens for p in pieces])
    labels = np.concatenate([p.labels for p in pieces])
    assert not labels[starts].any(), "the first token of a segment has no context to be predicted from"
    runs = [p.runs + start for p, start in zip(pieces, starts, strict=True)] if with_runs else []
    return Row(
        row_id=row_id,
        input_ids=tokens,
        segment_starts=starts.astype(np.int32),
        prompt_runs=np.concatenate([np.empty((0, 2), np.int32), *runs]).astype(np.int32),
        scored=labels[1:],
        source=source,
        document_ids=np.array(documents, dtype=np.int64),
        continued=np.array([p.continued for p in pieces], dtype=np.bool_),
        scored_bytes=int(byte_lengths[tokens[labels]].sum()),
    )
