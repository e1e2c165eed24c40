"""One thread that owns the student and its batch; requests come and go between two steps. Knows nothing of HTTP.

Every choice of a request is one row. What happens to it arrives as events through `deliver`, called in the thread.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..batch import Batch, Written, held
from ..model.lm import Student
from ..sampling import Picked
from .metrics import Metrics

Failure = Literal["timeout", "shutdown", "internal"]
_IDLE_S = 0.2


@dataclass(frozen=True)
class Event:
    """A token (`end` may say that it was the last), or the failure that ended the row."""

    token: Picked | None = None
    end: Literal["stop", "length"] | None = None
    failure: Failure | None = None


@dataclass(eq=False)
class Job:
    """One row of a request."""

    row: Written
    deliver: Callable[[Event], None]
    deadline: float  # time.monotonic()
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False  # nobody listens any more


class BusyError(Exception):
    """The queue is full, or the server is going down (`closing`)."""

    def __init__(self, closing: bool) -> None:
        super().__init__("closing" if closing else "full")
        self.closing = closing


class Engine:
    def __init__(self, student: Student, metrics: Metrics, max_rows: int, max_waiting: int) -> None:
        self.student, self.metrics = student, metrics
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: dict[Written, Job] = {}
        self._changed = threading.Condition()
        self._stop, self._drain_until = False, float("inf")
        self._thread = threading.Thread(target=self._run, name="student", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._drain_until == float("inf")

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of them, or none.

        Raises:
            BusyError: no room in the queue, or going down.
        """
        with self._changed:
            if not self.alive:
                raise BusyError(closing=True)
            if len(self._waiting) + len(self._running) + len(jobs) > self._max_rows + self._max_waiting:
                raise BusyError(closing=False)
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Free their rows before the next step."""
        with self._changed:
            for job in jobs:
                job.gone = True
            self._changed.notify()

    def drain(self, patience_s: float) -> None:
        """Take nothing new; what still runs after `patience_s` fails with `shutdown`. Safe in a signal handler."""
        self._drain_until = min(self._drain_until, time.monotonic() + patience_s)

    def close(self) -> None:
        """End the thread; what runs fails with `shutdown`."""
        self._drain_until = 0.0
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        batch = Batch(self.student)
        with held(self.student):
            while not self._stop:
                try:
                    self._turn(batch)
                except Exception:  # noqa: BLE001  (a broken step must not end the server: its rows fail, it goes on)
                    traceback.print_exc()
                    self.metrics.failed_steps.add()
                    self._fail_all(batch, "internal")
            self._fail_all(batch, "shutdown")

    def _turn(self, batch: Batch) -> None:
        with self._changed:
            if not self._waiting and not len(batch):
                self._changed.wait(_IDLE_S)
            self._sweep(batch)
            while self._waiting and len(batch) < self._max_rows:
                job = self._waiting.popleft()
                self._running[job.row] = job
                batch.add(job.row)
            self.metrics.rows.set(len(batch))
            self.metrics.waiting.set(len(self._waiting))
        if not len(batch):
            return
        begin = time.monotonic()
        written = batch.step()
        self.metrics.step_seconds.observe(time.monotonic() - begin)
        for row, token in written:
            job = self._running[row]
            if row.written == 1:
                self.metrics.first_token_seconds.observe(time.monotonic() - job.arrived)
            self.metrics.tokens.add()
            if row.end is not None:
                del self._running[row]
            job.deliver(Event(token, row.end))
        self.metrics.rows.set(len(batch))

    def _sweep(self, batch: Batch) -> None:
        """Drop what nobody waits for, what is too late, and everything once the drain is over."""
        now = time.monotonic()
        down = now >= self._drain_until
        for job in [*self._waiting, *self._running.values()]:
            if not (job.gone or down or now >= job.deadline):
                continue
            if job.row in self._running:
                del self._running[job.row]
                batch.remove(job.row)
            else:
                self._waiting.remove(job)
            if job.gone:
                self.metrics.cancelled.add()
            else:
                job.deliver(Event(failure="shutdown" if down else "timeout"))

    def _fail_all(self, batch: Batch, failure: Failure) -> None:
        with self._changed:
            jobs = [*self._running.values(), *(self._waiting if failure == "shutdown" else ())]
            self._running.clear()
            if failure == "shutdown":
                self._waiting.clear()
        batch.clear()
        for job in jobs:
            job.deliver(Event(failure=failure))
