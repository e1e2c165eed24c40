"""Un-packing: rows -> segments -> groups of similar length that run through the model together.

Only integers; the model is elsewhere. See `hf` for why rows are un-packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.rows import Row

PADDING_PER_GROUP = 64
"""Padding tokens a group may hold: about what the fixed cost of one more forward pass buys."""


@dataclass(frozen=True, eq=False)
class Segment:
    """The part of a segment that has to be read: up to its last scored position."""

    tokens: NDArray[np.int32]  # [t]
    scored: NDArray[np.int64]  # [n] indices into tokens
    first_result: int
    """Where its n results lie among all scored positions of the rows, in row order."""


def segments_of(rows: Sequence[Row]) -> Iterator[Segment]:
    """All segments with a scored position, in row order."""
    first_result = 0
    for row in rows:
        scored = row.scored_positions()
        bounds = np.append(row.segment_starts, row.num_tokens)
        for start, stop in pairwise(bounds.tolist()):
            here = scored[(scored >= start) & (scored < stop)]
            if len(here):
                assert here[-1] + 1 < stop, f"row {row.row_id}: position {here[-1]} predicts across a segment's end"
                yield Segment(row.input_ids[start : here[-1] + 1], here - start, first_result)
                first_result += len(here)


def group_by_length(segments: Sequence[Segment], max_tokens: int) -> list[list[Segment]]:
    """Groups in which segments differ little in length; at most `max_tokens` a group, padding included.

    A segment longer than that is a group of its own. The result depends on the arguments alone.
    """
    groups: list[list[Segment]] = []
    padding = 0
    for segment in sorted(segments, key=lambda s: -len(s.tokens)):  # stable: equal lengths keep row order
        width = len(groups[-1][0].tokens) if groups else 0
        padding += width - len(segment.tokens)
        if not groups or padding > PADDING_PER_GROUP or (len(groups[-1]) + 1) * width > max_tokens:
            groups.append([])
            padding = 0
        groups[-1].append(segment)
    return groups
