"""Rows of a dataset as plain values, one dict a position, for tables and JSON. Printing belongs to the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .reader import open_dataset
from .rows import Capture, Row

Decode = Callable[[list[int]], str]


def inspect(folder: Path, rows: int | Sequence[int] = 3, decode: Decode | None = None) -> list[dict[str, Any]]:
    """One dict for every scored position of some rows, in order.

    Args:
        folder: a finished dataset of either kind.
        rows: how many rows from the first on, or which rows.
        decode: ids -> text; without it the keys `*text` are left out.

    Returns:
        Keys `row`, `source`, `position`, `token`, `label`, and for captures `label_logprob`, `label_rank`, `entropy`,
        `rest_mass` (one a temperature), `head` (list of {id, logprob}), `tail` (list of {id, count}); with `decode`
        also `text` (the segment up to and including the token), `label_text`, and `text` in heads and tails.

    Raises:
        ShardError: the dataset cannot be read.
    """
    dataset = open_dataset(folder)
    chosen = range(min(rows, len(dataset))) if isinstance(rows, int) else rows
    return [position for index in chosen for position in inspect_row(dataset[index], decode)]


def inspect_row(row: Row, decode: Decode | None = None) -> list[dict[str, Any]]:
    """The scored positions of one row; see `inspect`."""
    positions = []
    for index, label in zip(row.scored_positions().tolist(), row.labels().tolist(), strict=True):
        shown: dict[str, Any] = {
            "row": row.row_id,
            "source": row.source,
            "position": index,
            "token": int(row.input_ids[index]),
            "label": label,
        }
        if decode is not None:
            start = row.segment_starts[row.segment_starts <= index].max()
            shown["text"] = decode(row.input_ids[start : index + 1].tolist())
            shown["label_text"] = decode([label])
        positions.append(shown)
    if row.capture is not None:
        for shown, said in zip(positions, _said(row.capture, decode), strict=True):
            shown.update(said)
    return positions


def _said(capture: Capture, decode: Decode | None) -> list[dict[str, Any]]:
    """What the teacher said at each position."""

    def entry(token_id: int, key: str, value: float) -> dict[str, Any]:
        text = {} if decode is None else {"text": decode([token_id])}
        return {"id": token_id, key: value} | text

    heads, tails = np.cumsum(capture.head_lengths), np.cumsum(capture.tail_lengths)
    cut = zip(
        range(capture.num_positions),
        np.split(capture.head_ids, heads),
        np.split(capture.head_logprobs, heads),
        np.split(capture.tail_ids, tails),
        np.split(capture.tail_counts, tails),
        strict=False,  # a cut after the last entry leaves one empty piece
    )
    return [
        {
            "label_logprob": float(capture.label_logprob[n]),
            "label_rank": int(capture.label_rank[n]),
            "entropy": float(capture.entropy[n]),
            "rest_mass": capture.rest_mass[n].tolist(),
            "head": [entry(i, "logprob", p) for i, p in zip(head_ids.tolist(), logprobs.tolist(), strict=True)],
            "tail": [entry(i, "count", c) for i, c in zip(tail_ids.tolist(), counts.tolist(), strict=True)],
        }
        for n, head_ids, logprobs, tail_ids, counts in cut
    ]
