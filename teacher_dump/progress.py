"""How far the dump is and how fast: counted by the work, told by a thread, so that slow batches do not look dead."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from shards.job import Emit

_EVERY_S = 0.5


class DumpProgress:
    """A context manager; inside it a progress event goes out every half second and once more at the end."""

    def __init__(self, emit: Emit, total_tokens: int) -> None:
        self.place = "starting"
        """What is being worked on, for the event's text."""
        self._emit = emit
        self._total = total_tokens
        self._done = 0
        self._scored_now = 0
        self._started = self._last_add = time.monotonic()
        self._stop = threading.Event()
        self._teller = threading.Thread(target=self._tell_until_stopped, daemon=True)

    def __enter__(self) -> DumpProgress:
        self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._teller.join()
        if error is None:
            self._tell()

    def resume(self, split: str, shards: int, planned: int, tokens: int) -> None:
        """Count whole shards of an earlier run, and say so."""
        self._done += tokens
        self._emit({"event": "note", "text": f"{split}: {shards} of {planned} shards are whole already, going on"})

    def add(self, tokens: int) -> None:
        """Tokens scored and handed on for writing."""
        self._done += tokens
        self._scored_now += tokens
        self._last_add = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        """Of this run's own scoring, encoding included; 0 before the first batch."""
        return self._scored_now / max(1e-9, self._last_add - self._started)

    def _tell_until_stopped(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._tell()

    def _tell(self) -> None:
        self._emit(
            {
                "event": "progress",
                "stage": "dump",
                "done": self._done,
                "total": self._total,
                "unit": "tokens",
                "text": f"{self.place}, {self.tokens_per_second:,.0f} tok/s",
            }
        )
