"""Many sequences written on together: each is one row of state of fixed size; rows come and go between two steps.

A step prefills the rows that wait (prompts of unequal length side by side, long ones in pieces) and decodes the rows
that are ready, one token each. What a row writes does not depend on the others, up to the rounding of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shards.errors import UserError

from .cells.synapses import Synapses
from .config import GenerateConfig
from .model.lm import Student
from .model.state import State
from .sampling import Picked, Sampler, pick_rows

Runs = Sequence[tuple[int, int]]
PREFILL_TOKENS = 2048  # tokens, padding included, that one step prefills at most (a prompt in runs goes in whole)


@dataclass(eq=False)
class Written:
    """One sequence: its prompt, how to go on, and how far it is. Created by the caller, filled by `Batch`."""

    prompt: Sequence[int]
    config: GenerateConfig
    stop_ids: frozenset[int] = frozenset()
    runs: Runs = ()  # half-open ranges of the prompt that arrived whole
    logprobs: int | None = None
    end: Literal["stop", "length"] | None = None
    written: int = 0
    sampler: Sampler = field(init=False)
    state: State | None = None  # while prefilling
    read: int = 0  # tokens of the prompt that are in the state

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.config, self.logprobs)
        self.last = self.prompt[-1]


def check_prompt(student: Student, prompt: Sequence[int]) -> None:
    """Raises UserError: an empty prompt, or one with ids that the student does not know."""
    if not prompt:
        raise UserError("prompt: empty, and a student goes on from something; give at least one character")
    if min(prompt) < 0 or max(prompt) >= student.vocab_size:
        wrong = next(i for i in prompt if not 0 <= i < student.vocab_size)
        raise UserError(
            f"prompt: token {wrong} of {student.vocab_size} known ones; use the tokenizer beside the student"
        )


@contextmanager
def held(student: Student) -> Iterator[None]:
    """Work out the synapses once instead of at every token. The weights must not change meanwhile."""
    bundles = [m for m in student.modules() if isinstance(m, Synapses)]
    try:
        with torch.no_grad():
            for bundle in bundles:
                bundle.hold()
        yield
    finally:
        for bundle in bundles:
            bundle.release()


class Batch:
    """The rows that are written on. Not thread-safe: one thread owns it."""

    def __init__(self, student: Student, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.student, self.prefill_tokens = student, prefill_tokens
        self.rows: list[Written] = []  # decoding, in the order of `_state`
        self.prefilling: list[Written] = []
        self._state: State | None = None

    def __len__(self) -> int:
        return len(self.rows) + len(self.prefilling)

    def add(self, row: Written) -> None:
        """A new row; its prompt is read in the next steps."""
        row.sampler.note(row.prompt, self.student.vocab_rows)
        self.prefilling.append(row)

    def remove(self, row: Written) -> None:
        """Forget a row, wherever it is; the others do not notice."""
        if row in self.prefilling:
            self.prefilling.remove(row)
        elif row in self.rows:
            self._keep([r for r in self.rows if r is not row])

    def clear(self) -> None:
        """Forget all rows."""
        self.rows, self.prefilling, self._state = [], [], None

    @torch.no_grad()
    def step(self) -> list[tuple[Written, Picked]]:
        """The next token of every row that has one; rows that end (`row.end`) leave. A stop id is not text."""
        hidden: list[Tensor] = []
        states: list[State] = []
        writing: list[Written] = list(self.rows)
        device = self.student.head_weight.device
        if self.rows:
            tokens = torch.tensor([[r.last] for r in self.rows], device=device)
            out, state = self.student(tokens, state=self._state)
            hidden.append(out[:, 0])
            states.append(state)
        if self.prefilling:
            ready, out, state = self._prefill()
            if ready:
                writing += ready
                hidden.append(out)
                states.append(state)
        self.rows, self._state = writing, State.join(states) if states else None
        if not writing:
            return []
        picked = pick_rows(self.student.logits(torch.cat(hidden)), [r.sampler for r in writing])
        for row, token in zip(writing, picked, strict=True):
            row.last = token.id
            row.written += 1
            row.sampler.note([token.id], self.student.vocab_rows)
            if token.id in row.stop_ids:
                row.end = "stop"
            elif row.written >= row.config.max_new_tokens:
                row.end = "length"
        self._keep([r for r in writing if r.end is None])
        return list(zip(writing, picked, strict=True))

    def _keep(self, rows: list[Written]) -> None:
        if len(rows) == len(self.rows):
            return
        index = [i for i, r in enumerate(self.rows) if r in rows]
        if self._state is not None:
            device = self.student.head_weight.device
            self._state = self._state.select(torch.tensor(index, device=device)) if index else None
        self.rows = rows

    def _prefill(self) -> tuple[list[Written], Tensor, State]:
        """Read a piece of the first waiting prompts; those read to the end, their last hidden vectors, their states."""
        rows, pieces = self._pieces()
        device, longest = self.student.head_weight.device, max(map(len, pieces))
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in pieces], device=device)
        lengths = torch.tensor([len(p) for p in pieces], device=device)
        runs = self._runs(rows, longest)
        state = None
        if any(r.state is not None for r in rows):
            state = State.join([r.state or self.student.init_state(1) for r in rows])
        even = all(len(p) == longest for p in pieces)
        hidden, state = self.student(ids, run_ids=runs, lengths=None if even else lengths, state=state)
        ready = []
        for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            row.read += len(piece)
            row.state = None
            if row.read == len(row.prompt):
                ready.append(i)
            else:
                row.state = state.select(torch.tensor([i], device=device))
        self.prefilling = [r for r in self.prefilling if r.read < len(r.prompt)]
        index = torch.tensor(ready, dtype=torch.int64, device=device)
        last = hidden[index, lengths[index] - 1]
        return [rows[i] for i in ready], last, state if len(ready) == len(rows) else state.select(index)

    def _pieces(self) -> tuple[list[Written], list[Sequence[int]]]:
        """The rows to prefill now, in order of arrival, and what of their prompts."""
        rows: list[Written] = []
        pieces: list[Sequence[int]] = []
        longest = 0
        for row in self.prefilling:
            size = len(row.prompt) - row.read
            if not self._as_runs(row):
                size = min(size, self.prefill_tokens)
            longest = max(longest, size)
            if rows and longest * (len(rows) + 1) > self.prefill_tokens:
                break
            rows.append(row)
            pieces.append(row.prompt[row.read : row.read + size])
        return rows, pieces

    def _as_runs(self, row: Written) -> bool:
        return bool(row.runs) and self.student.config.prompt_runs

    def _runs(self, rows: Sequence[Written], longest: int) -> Tensor | None:
        """[B, T] index of each token's run, for a student that was trained so (its prompts are read whole)."""
        if not any(map(self._as_runs, rows)):
            return None
        ids = torch.full((len(rows), longest), -1)
        for i, row in enumerate(rows):
            for number, (begin, end) in enumerate(row.runs):
                ids[i, begin:end] = number
        return ids.to(self.student.head_weight.device)
