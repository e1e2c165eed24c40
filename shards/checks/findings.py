"""Wrong places found by the checks, with shard, row, position and value; a flood is counted, not printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .flat import Flat

SHOWN = 3
"""Places written out for one kind of finding in one shard."""
REWRITE = "the shard was written so: move the dataset away and run the stage that writes it again"


class Findings:
    """Collects what is wrong in one shard; `lines` gives it as text, `counts` by name of the check."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._shown: list[str] = []
        self._kinds: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()

    def shard(self, check: str, text: str) -> None:
        """The shard as a whole is wrong; `text` brings its own remedy."""
        self.counts[check] += 1
        self._shown.append(f"{self._shard}: {text}")

    def rows(self, check: str, what: str, wrong: NDArray[np.bool_], flat: Flat, value: Callable[[int], object]) -> None:
        """`wrong` [rows] marks rows where `what` holds; `value(r)` is what stands there."""
        self._add(check, what, np.flatnonzero(wrong), lambda r: f"row {flat.first_row + r}", value)

    def positions(
        self, check: str, what: str, wrong: NDArray[np.bool_], flat: Flat, value: Callable[[int], object]
    ) -> None:
        """`wrong` [positions] marks scored positions where `what` holds; `value(p)` is what stands there."""

        def place(p: int) -> str:
            return f"row {flat.first_row + flat.row[p]}, position {flat.index[p]}"

        self._add(check, what, np.flatnonzero(wrong), place, value)

    def lines(self) -> list[str]:
        """One line a finding, then one for each kind that had more than `SHOWN`."""
        floods = [
            f"{self._shard}: {count - SHOWN} more places where {what}"
            for (_, what), count in self._kinds.items()
            if count > SHOWN
        ]
        return self._shown + floods

    def _add(
        self,
        check: str,
        what: str,
        wrong: NDArray[np.int64],
        place: Callable[[int], str],
        value: Callable[[int], object],
    ) -> None:
        room = max(0, SHOWN - self._kinds[check, what])
        self._kinds[check, what] += len(wrong)
        self.counts[check] += len(wrong)
        for at in wrong[:room].tolist():
            self._shown.append(f"{self._shard}: {place(at)}: {what} ({value(at)}); {REWRITE}")
