"""Counters, gauges and histograms in the text format of Prometheus. Thread-safe enough: each number has one lock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Number:
    """A counter (only `add`) or a gauge (`set`), by label values."""

    def __init__(self, kind: str, name: str, text: str) -> None:
        self.kind, self.name, self.text = kind, name, text
        self._values: dict[str, float] = {} if kind == "labelled" else {"": 0.0}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, labels: str = "") -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def set(self, value: float) -> None:
        with self._lock:
            self._values[""] = value

    @property
    def value(self) -> float:
        return sum(self._values.values())

    def lines(self) -> Iterator[str]:
        kind = "counter" if self.kind == "labelled" else self.kind
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} {kind}"
        with self._lock:
            for labels, value in sorted(self._values.items()):
                yield f"{self.name}{labels and '{' + labels + '}'} {value:.15g}"


class Histogram:
    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._counts, self._sum = [0] * (len(_SECONDS) + 1), 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(_SECONDS, seconds)] += 1
            self._sum += seconds

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} histogram"
        with self._lock:
            total = 0
            for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
                total += count
                yield f'{self.name}_bucket{{le="{bound}"}} {total}'
            yield f"{self.name}_sum {self._sum:.9g}"
            yield f"{self.name}_count {total}"


class Metrics:
    def __init__(self) -> None:
        p = "minicodformer_"
        self.requests = Number("labelled", f"{p}requests_total", "Answered requests by path and status.")
        self.tokens = Number("counter", f"{p}tokens_total", "Tokens written.")
        self.prompt_tokens = Number("counter", f"{p}prompt_tokens_total", "Tokens of accepted prompts.")
        self.cancelled = Number("counter", f"{p}cancelled_total", "Rows freed because the client had left.")
        self.failed_steps = Number("counter", f"{p}failed_steps_total", "Steps that ended with an internal error.")
        self.rows = Number("gauge", f"{p}rows", "Sequences being written.")
        self.waiting = Number("gauge", f"{p}waiting", "Sequences waiting for a row.")
        self.first_token_seconds = Histogram(f"{p}first_token_seconds", "From arrival to the first token.")
        self.step_seconds = Histogram(f"{p}step_seconds", "One step of the whole batch.")

    def text(self) -> str:
        parts: list[Number | Histogram] = [
            *(self.requests, self.tokens, self.prompt_tokens, self.cancelled, self.failed_steps),
            *(self.rows, self.waiting, self.first_token_seconds, self.step_seconds),
        ]
        return "\n".join(line for part in parts for line in part.lines()) + "\n"
