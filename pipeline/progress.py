"""What a person sees while stages run: one moving bar on a terminal, a plain line every few seconds in a log.

Not an event source: it renders the event lines of `shards.job`. It starts no thread (children are forked while it
lives), so whoever waits for a phase calls `tick` now and then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

LINE_EVERY_S = 5.0
SILENCE_S = 15.0


class Screen:
    """The output of one command. `console` decides by its stream whether a bar makes sense."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.errors: list[str] = []
        """Texts of the user errors that the running phase reported."""
        self._bar: _Bar | None = None
        self._label = ""
        self._began = self._last_line = 0.0
        self._work: _Work | None = None

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        console = self._bar.progress.console if self._bar else self.console
        console.print(Text(text, style=style))

    def stage_begins(self, label: str) -> None:
        self._label, self._began, self._work, self.errors = label, time.monotonic(), None, []
        self._last_line = self._began
        self.line(f"{label}: started")
        if self.console.is_terminal:
            self._bar = _Bar(self.console, label)

    def stage_ends(self, outcome: str) -> None:
        """`outcome`: "done", "failed", "stopped"."""
        if self._bar is not None:
            self._bar.progress.stop()
            self._bar = None
        self.line(f"{self._label}: {outcome} after {clock(time.monotonic() - self._began)}")

    def event(self, event: Mapping[str, Any]) -> None:
        """One event line of the running phase."""
        match event.get("event"):
            case "progress":
                self._progress(event)
            case "note":
                self.line(f"{self._label}: {event.get('text', '')}")
            case "warning":
                self.line(f"{self._label}: warning: {event.get('text', '')}", style="yellow")
            case "error" if event.get("kind") == "user":
                self.errors.append(str(event.get("text", "")))

    def tick(self) -> None:
        """Keep the bar moving; break a long silence in a log."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.show(self._work, now - self._began)
        elif now - self._last_line > SILENCE_S:
            self._plain(self._work.describe() if self._work else "working", now)

    def _progress(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        name = str(event.get("stage", ""))
        if self._work is None or self._work.name != name:
            self._work = _Work(name, float(event.get("done") or 0), now)
        self._work.update(event, now)
        if self._bar is None and now - self._last_line >= LINE_EVERY_S:
            self._plain(self._work.describe(), now)

    def _plain(self, text: str, now: float) -> None:
        self.line(f"{self._label}: {text}; {clock(now - self._began)} so far")
        self._last_line = now


class _Work:
    """One counted piece of work inside a stage, with its speed since this process began it."""

    def __init__(self, name: str, first: float, began: float) -> None:
        self.name, self.done, self.total, self.unit, self.text = name, first, None, "", ""
        self._first, self._began, self._now = first, began, began

    name: str
    total: float | None

    def update(self, event: Mapping[str, Any], now: float) -> None:
        self.done = float(event.get("done") or 0)
        self.total = float(event["total"]) if event.get("total") else None
        self.unit, self.text, self._now = str(event.get("unit") or ""), str(event.get("text") or ""), now

    def rate(self) -> float:
        """Units a second; 0 while unknown."""
        elapsed = self._now - self._began
        return (self.done - self._first) / elapsed if elapsed > 1 else 0.0

    def left(self) -> str:
        rate = self.rate()
        if not self.total or rate <= 0:
            return ""
        return f"about {clock((self.total - self.done) / rate)} left"

    def counted(self) -> str:
        done = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        of = f"{done} {self.unit}".strip() if self.total or self.done else ""
        rate = self.rate()
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:,.2g}/s" if rate > 0 else ""
        return "  ".join(part for part in (of, speed, self.left()) if part)

    def describe(self) -> str:
        return "; ".join(part for part in (self.counted().replace("  ", ", "), self.text) if part) or "working"


class _Bar:
    """The moving bar of a terminal."""

    def __init__(self, console: Console, label: str) -> None:
        columns = (
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}"),
            TextColumn("{task.fields[remark]}", style="dim"),
        )
        self.progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self.progress.add_task(label, total=None, counted="", remark="")
        self.progress.start()

    def show(self, work: _Work | None, elapsed: float) -> None:
        if work is None:
            self.progress.update(self._task, counted=clock(elapsed), remark="starting")
        else:
            self.progress.update(
                self._task,
                completed=work.done,
                total=work.total,
                counted=f"{work.counted()}  {clock(elapsed)}",
                remark=work.text[:60],
            )
        self.progress.refresh()


def clock(seconds: float) -> str:
    """`75` -> `1:15`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
