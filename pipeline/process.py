"""One phase as a process: start it in a session of its own, read its event lines, and never let it outlive us.

Three strings hold a phase to its conductor: the kernel's parent-death signal (the conductor is killed), SIGTERM to
the phase's session and later SIGKILL (the conductor is interrupted), and the pipe that breaks. torchrun passes
SIGTERM on to its ranks, which sit in sessions of their own and die by SIGKILL when torchrun dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.job import die_with_parent

STOP_PATIENCE_S = 60.0
_DRAIN_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a phase ended."""

    code: int
    """Exit code; negative: killed by that signal."""
    interrupted: signal.Signals | None = None
    """The signal that told the conductor to stop."""


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP instead of dying of them; the loop that waits looks here."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    @contextlib.contextmanager
    def caught(self) -> Iterator[StopSignals]:
        under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        wanted = [s for s in _SIGNALS if not (s is signal.SIGHUP and under_nohup)]
        old = {s: signal.signal(s, self._note) for s in wanted}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.received.append(signal.Signals(number))


def run_phase(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    on_event: Callable[[Mapping[str, Any]], None],
    tick: Callable[[], None],
    stop: StopSignals,
) -> Outcome:
    """Run `command` to its end; event lines go to `on_event`, all else that it prints into the file `log`.

    A first signal in `stop` becomes SIGTERM for the phase's session, a second one (or a minute of patience) SIGKILL.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    conductor = os.getpid()

    def in_child() -> None:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != conductor:
            os._exit(1)

    with log.open("ab", buffering=0) as sink:
        child = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
            preexec_fn=in_child,  # safe: the conductor runs no threads
        )
        assert child.stdout is not None
        with child.stdout as pipe:
            lines = _Lines(pipe, sink, on_event)
            try:
                _follow(child, lines, tick, stop)
            finally:  # also when rendering fails: no phase without a conductor
                _signal_session(child, signal.SIGKILL)
                child.wait()
    return Outcome(child.returncode, stop.received[0] if stop.received else None)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        text = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _follow(child: subprocess.Popen[bytes], lines: _Lines, tick: Callable[[], None], stop: StopSignals) -> None:
    """Read until the phase has ended; pass stop signals on."""
    told = 0
    deadline = float("inf")
    while child.poll() is None:
        lines.read(0.2)
        tick()
        if len(stop.received) > told:
            told = len(stop.received)
            _signal_session(child, signal.SIGTERM if told == 1 else signal.SIGKILL)
            deadline = min(deadline, time.monotonic() + STOP_PATIENCE_S)
        elif time.monotonic() > deadline:
            _signal_session(child, signal.SIGKILL)
    lines.drain(_DRAIN_S)


def _signal_session(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


class _Lines:
    """Splits a phase's standard output into events and free text."""

    def __init__(self, pipe: BinaryIO | Any, sink: Any, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        self._pipe, self._sink, self._on_event = pipe, sink, on_event
        self._rest = b""
        self._open = True
        os.set_blocking(pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)

    def read(self, timeout_s: float) -> bool:
        """Handle what arrives within `timeout_s`; False when nothing did."""
        if not self._open:
            time.sleep(timeout_s)
            return False
        if not self._selector.select(timeout_s):
            return False
        data = self._pipe.read(1 << 16)
        if data is None:
            return False
        if not data:
            self._open = False
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._take(line)
        return True

    def drain(self, patience_s: float) -> None:
        """What is left in the pipe; grandchildren that still hold it open do not keep us."""
        deadline = time.monotonic() + patience_s
        while self._open and time.monotonic() < deadline and self.read(0.1):
            pass
        if self._rest:
            self._take(self._rest)
        self._selector.close()

    def _take(self, line: bytes) -> None:
        event = parse_event(line)
        if event is not None:
            self._on_event(event)
        else:
            with contextlib.suppress(OSError):  # a full disk must not hide how the phase ends
                self._sink.write(line + b"\n")


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event in a line of output, or None for free text."""
    if not line.startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None
