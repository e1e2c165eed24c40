"""What the dump asks of a teacher. Backends implement it; the dump knows nothing else of them.

A teacher holds its model and its `ExtractionSpec`: captures, not logits, leave it, because some backends extract in
another process or on several cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.rows import Capture, Row

from ..philox import Key


class NotFiniteError(Exception):
    """The teacher's logits at one position hold NaN or +inf."""

    def __init__(self, row_id: int, position: int) -> None:
        super().__init__(f"row {row_id}, position {position}: logits are not finite")
        self.row_id = row_id
        self.position = position


class Teacher(Protocol):
    """Scores packed rows. Segments of a row never see each other, and positions begin at 0 in each."""

    vocab_size: int
    """Real rows of the vocabulary: ids with a token."""
    vocab_rows: int
    """Rows of the output matrix, padding included."""
    max_length: int | None
    """Longest segment the model was built for; None: no limit stated."""
    threads: int | None
    """CPU threads that decide the last bits of the results; None where they do not (GPU)."""

    def fingerprint(self) -> dict[str, str]:
        """What decides the captures: hashes of config and weight files, revision, dtype, backend and version."""
        ...

    def score(self, rows: Sequence[Row], key: Key) -> list[Capture]:
        """One capture a row, in order; `key` is that of the tail draws (`philox.key_of`).

        Equal calls give equal bytes on a deterministic device.

        Raises:
            NotFiniteError: naming row and position.
        """
        ...

    def logprobs(self, row: Row, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Full distributions, float32 [len(positions), vocab_size], natural logs over the real rows."""
        ...
