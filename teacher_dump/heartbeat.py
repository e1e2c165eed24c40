"""Signs of life while one long library call runs and cannot report itself. Not a progress bar: it knows no total."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shards.job import Emit


@contextmanager
def heartbeat(emit: Emit, stage: str, text: str, every_s: float = 2.0) -> Iterator[None]:
    """Emit a progress event (`done` = seconds so far) at once and every `every_s` until the block ends."""
    stop = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while True:
            done = round(time.monotonic() - started)
            emit({"event": "progress", "stage": stage, "done": done, "total": None, "unit": "s", "text": text})
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
