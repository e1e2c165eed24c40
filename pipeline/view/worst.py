"""The tokens that stand out: a bounded list of the largest values, filled as rows are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 500
PER_ROW = 5
"""Of one row at most this many, so that one strange row does not fill the list."""


class Worst:
    """The `KEPT` largest values, largest first, with row and position."""

    def __init__(self) -> None:
        self._values: NDArray[np.float32] = np.zeros(0, np.float32)
        self._places: NDArray[np.int64] = np.zeros((0, 2), np.int64)

    def add(self, row: int, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Offer the values [n] at `positions` [n] of a row."""
        best = np.argsort(-values, kind="stable")[:PER_ROW]
        if len(self._values) >= KEPT:
            best = best[values[best] > self._values[-1]]
        if not len(best):
            return
        joined = np.concatenate([self._values, values[best].astype(np.float32)])
        places = np.concatenate([self._places, np.stack([np.full(len(best), row), positions[best]], 1)])
        order = np.argsort(-joined, kind="stable")[:KEPT]
        self._places, self._values = places[order], joined[order]

    def first(self, count: int) -> list[tuple[int, int, float]]:
        """(row, position, value), largest first."""
        values, places = self._values, self._places
        pairs = zip(places[:count].tolist(), values[:count].tolist(), strict=False)
        return [(row, position, value) for (row, position), value in pairs]

    def to_json(self) -> dict[str, Any]:
        return {"values": self._values.tolist(), "places": self._places.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Worst:
        worst = cls()
        worst._values = np.asarray(content["values"], np.float32)
        worst._places = np.asarray(content["places"], np.int64).reshape(-1, 2)
        return worst
