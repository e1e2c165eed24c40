"""Progress events at a bearable rate."""

from __future__ import annotations

import time

from shards.job import Emit

SECONDS_BETWEEN = 0.25


class Progress:
    """Emits `progress` events of one stage, a few a second at most; the last one always."""

    def __init__(self, emit: Emit, stage: str, unit: str) -> None:
        self._emit, self._stage, self._unit = emit, stage, unit
        self._shown = 0.0

    def show(self, done: int, total: int, text: str = "", *, always: bool = False) -> None:
        """`done` of `total`; `text` is a short free remark."""
        now = time.monotonic()
        if not always and done < total and now - self._shown < SECONDS_BETWEEN:
            return
        self._shown = now
        event = {"event": "progress", "stage": self._stage, "done": done, "total": total, "unit": self._unit}
        self._emit(event | {"text": text})
