"""The logical row, version 1: what prepare writes (a corpus row) and what dump adds to it (a capture).

Shapes: T tokens in the row, G segments, R prompt runs, n = sum(scored) scored positions, C stored temperatures.
Flat lists are position-major. `FORMAT.md` is the spec; `schema.py` maps these to Arrow columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Capture:
    """What the teacher said at the n scored positions of one row (natural logs, over the real vocabulary rows)."""

    head_lengths: NDArray[np.uint16]  # [n]
    head_ids: NDArray[np.int32]  # [sum head_lengths], value descending, id ascending on ties
    head_logprobs: NDArray[np.float32]  # [sum head_lengths], T = 1
    rest_mass: NDArray[np.float32]  # [n, C], probability outside the head at each stored temperature
    tail_lengths: NDArray[np.uint16]  # [n], unique ids drawn
    tail_ids: NDArray[np.int32]  # [sum tail_lengths], ascending inside a position, never in the head
    tail_counts: NDArray[np.uint16]  # [sum tail_lengths], how often each came, >= 1
    label_logprob: NDArray[np.float32]  # [n]
    label_rank: NDArray[np.uint32]  # [n], 0 = most likely
    entropy: NDArray[np.float32]  # [n], nats, of the full distribution
    tail_logprobs: NDArray[np.float32] | None = None  # [sum tail_lengths]
    logsumexp: NDArray[np.float32] | None = None  # [n]
    dead_row_mass: float = 0.0
    """Mean mass that padded vocabulary rows would have had; not a column, averaged into the manifest."""

    @property
    def num_positions(self) -> int:
        return len(self.head_lengths)


@dataclass(frozen=True, eq=False)
class Row:
    """One packed sequence. Position i predicts token i + 1; `scored[i]` says whether it is a label that counts."""

    row_id: int
    input_ids: NDArray[np.int32]  # [T]
    segment_starts: NDArray[np.int32]  # [G], first is 0
    prompt_runs: NDArray[np.int32]  # [R, 2], half-open ranges
    scored: NDArray[np.bool_]  # [T - 1]
    source: str = ""
    """Where the row's text came from (file stem); one row holds one source."""
    document_ids: NDArray[np.int64] | None = None  # [G]
    continued: NDArray[np.bool_] | None = None  # [G], segment goes on from an earlier row
    scored_bytes: int = 0
    """UTF-8 bytes that the scored labels stand for (bits per byte)."""
    capture: Capture | None = None
    corpus_id: int = 0
    """In merged datasets, which corpus `row_id` belongs to."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_scored(self) -> int:
        return int(self.scored.sum())

    def scored_positions(self) -> NDArray[np.int64]:
        """[n] indices i whose capture is stored, in order."""
        return np.flatnonzero(self.scored)

    def labels(self) -> NDArray[np.int32]:
        """[n] the token after each scored position."""
        return self.input_ids[1:][self.scored]

    def reset(self) -> NDArray[np.bool_]:
        """[T] True where a segment starts: attention and state begin anew."""
        flags = np.zeros(self.num_tokens, dtype=np.bool_)
        flags[self.segment_starts] = True
        return flags
