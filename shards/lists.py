"""A list column of one batch as two arrays: what the encodings take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Lists:
    """A list column of one batch: row r has `values[offsets[r]:offsets[r + 1]]`."""

    offsets: NDArray[np.int64]  # [rows + 1], first is 0
    values: NDArray[Any]  # [total] (prompt_runs: [total, 2])

    def __getitem__(self, r: int) -> NDArray[Any]:
        return self.values[self.offsets[r] : self.offsets[r + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)
