"""Rendered samples -> pieces that fit into a row. Not a packer: which pieces share a row is decided in `pack.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .render import Rendered


@dataclass(frozen=True, eq=False)
class Piece:
    """One future segment: T tokens with fresh context, T at most the length of a row."""

    tokens: NDArray[np.int32]  # [T]
    labels: NDArray[np.bool_]  # [T] token i is a label that counts; never the first, nothing predicts it
    runs: NDArray[np.int32]  # [R, 2] half-open ranges that arrive whole
    continued: bool = False
    """The document began in an earlier piece."""


def cut_document(tokens: list[int], prefix: list[int], max_length: int) -> list[Piece]:
    """A plain document (separator included) in pieces of `max_length`; nothing where no token predicts another.

    Every piece starts with `prefix`, as the tokenizer starts every text. The last piece has at least two tokens of
    its own, so that none is stored in vain.
    """
    room = max_length - len(prefix)
    assert room >= 2, f"a row of {max_length} tokens has no room beside the prefix {prefix}"
    ends = [*range(room, len(tokens), room), len(tokens)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        ends[-2] -= 1
    pieces = []
    start = 0
    for end in ends:
        own = np.array([*prefix, *tokens[start:end]], dtype=np.int32)
        if len(own) >= 2:
            labels = np.arange(len(own)) >= max(len(prefix), 1)
            pieces.append(Piece(own, labels, np.empty((0, 2), dtype=np.int32), continued=start > 0))
        start = end
    return pieces


def cut_chat(sample: Rendered, max_length: int) -> Piece | None:
    """The sample's first `max_length` tokens, up to the last label; None where no label is left.

    Prompts are never shortened: a response has to follow the whole prompt that it answers.
    """
    labels = np.array(sample.labels[:max_length], dtype=np.bool_)
    kept = np.flatnonzero(labels)
    if len(kept) == 0:
        return None
    end = int(kept[-1]) + 1
    runs = [run for run in sample.runs if run[1] < end]
    return Piece(
        np.array(sample.tokens[:end], dtype=np.int32),
        labels[:end],
        np.array(runs, dtype=np.int32).reshape(-1, 2),
    )
