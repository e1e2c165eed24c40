"""From events of the engine to the pieces of an answer: text that is certain, log-probabilities, why it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..batch import Written
from ..config import GenerateConfig
from ..model.tokenizer import StudentTokenizer, TextStream
from ..sampling import Picked
from .engine import Event, Job
from .protocol import ApiError

FAILURES = {
    "timeout": (504, "The request took longer than this server allows; ask for fewer tokens or try again later."),
    "shutdown": (503, "The server is going down; try again later."),
    "internal": (500, "The server failed while writing; its log has the reason."),
}


@dataclass(frozen=True)
class Piece:
    """What one token adds to choice `index`."""

    index: int
    text: str
    token: Picked | None = None
    finish: str | None = None


@dataclass(eq=False)
class Choices:
    """The rows of one request; `pieces` yields until all have ended."""

    tokenizer: StudentTokenizer
    timeout_s: float
    jobs: list[Job] = field(default_factory=list)
    streams: list[TextStream] = field(default_factory=list)
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def add(
        self, prompt: Sequence[int], runs: list[tuple[int, int]], config: GenerateConfig, logprobs: int | None
    ) -> None:
        index = len(self.jobs)

        def deliver(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        row = Written(prompt, config, self.tokenizer.stop_ids, runs, logprobs)
        self.jobs.append(Job(row, deliver, time.monotonic() + self.timeout_s))
        self.streams.append(TextStream(self.tokenizer, config.stop))

    async def pieces(self) -> AsyncIterator[Piece]:
        """Raises ApiError when a row fails. A row whose text has met a stop text is marked as gone."""
        open_rows = set(range(len(self.jobs)))
        while open_rows:
            index, event = await self._events.get()
            if index not in open_rows:
                continue  # written before the engine heard that this row has met its stop text
            if event.failure is not None:
                status, message = FAILURES[event.failure]
                raise ApiError(status, message, code=event.failure)
            assert event.token is not None
            self.completion_tokens += 1
            stream, finish = self.streams[index], event.end
            text = stream.push(event.token.id) if event.end != "stop" else ""
            if stream.stopped:
                finish = "stop"
                self.jobs[index].gone = True
            elif finish is not None:
                text += stream.finish()
                finish = "stop" if stream.stopped else finish
            if finish is not None:
                open_rows.remove(index)
            yield Piece(index, text, event.token if event.end != "stop" else None, finish)


def token_entry(tokenizer: StudentTokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}


def chat_logprobs(tokenizer: StudentTokenizer, tokens: Sequence[Picked]) -> dict[str, Any]:
    """The `logprobs` of chat choices."""
    content = []
    for t in tokens:
        top = [token_entry(tokenizer, i, p) for i, p in t.top]
        content.append({**token_entry(tokenizer, t.id, t.logprob or 0.0), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: StudentTokenizer, tokens: Sequence[Picked], offset: int) -> dict[str, Any]:
    """The `logprobs` of completions; `offset`: characters of the choice before these tokens."""
    entries = [token_entry(tokenizer, t.id, t.logprob or 0.0) for t in tokens]
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    top = []
    for t in tokens:
        alternatives: dict[str, float] = {}
        for i, p in t.top:
            entry = token_entry(tokenizer, i, p)
            alternatives.setdefault(entry["token"], entry["logprob"])
        top.append(alternatives)
    return {
        "tokens": [e["token"] for e in entries],
        "token_logprobs": [e["logprob"] for e in entries],
        "top_logprobs": top,
        "text_offset": offsets,
    }
