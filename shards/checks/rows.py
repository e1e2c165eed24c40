"""Checks of what prepare wrote: tokens, segments, prompt runs, and which positions may be scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..header import Header
from ..lists import Lists
from .findings import Findings
from .flat import Flat, owners, per_row_sum

SHAPES, ROWS = "shapes", "rows"
_PER_POSITION = ("head_lengths", "tail_lengths", "label_logprob", "label_rank", "entropy", "logsumexp")
_PER_HEAD, _PER_TAIL = ("head_ids", "head_logprobs"), ("tail_ids", "tail_counts", "tail_logprobs")


def check_scored_shape(flat: Flat, found: Findings) -> bool:
    """Whether `scored` fits `input_ids`: without that nothing else can be cut."""
    lists = flat.columns.lists
    short = lists["scored"].lengths != lists["input_ids"].lengths - 1
    found.rows(SHAPES, "scored is not one shorter than input_ids", short, flat, _length(lists["scored"]))
    return not short.any()


def check_shapes(flat: Flat, header: Header, found: Findings) -> bool:
    """Whether every flat list is as long as its lengths say, row by row."""
    lists = flat.columns.lists
    n = np.bincount(flat.row, minlength=flat.columns.num_rows)
    expected = dict.fromkeys(_PER_POSITION, n)
    if header.kind == "captures":
        expected["rest_mass"] = n * len(header.temperatures)
        for lengths, names in (("head_lengths", _PER_HEAD), ("tail_lengths", _PER_TAIL)):
            expected |= dict.fromkeys(names, per_row_sum(flat, lists[lengths]))
    segments = lists["segment_starts"].lengths
    for name in ("document_ids", "continued"):
        expected[name] = np.where(lists[name].lengths > 0, segments, 0)
    fits = True
    for name in expected.keys() & lists.keys():
        wrong = lists[name].lengths != expected[name]
        found.rows(SHAPES, f"{name} has another length than it should", wrong, flat, _length(lists[name]))
        fits &= not wrong.any()
    return fits


def check_rows(flat: Flat, header: Header, found: Findings) -> None:
    """Ids, segments and prompt runs of every row; never-scored positions."""
    columns, tokens = flat.columns, flat.columns.lists["input_ids"]
    row_ids = columns.scalars["row_id"].astype(np.int64)
    if header.derived:
        corpus = columns.scalars.get("corpus_id", np.zeros(columns.num_rows, np.int32))
        same = np.append(False, corpus[1:] == corpus[:-1])
        fall = np.append(False, (corpus[1:] < corpus[:-1]) | (same[1:] & (row_ids[1:] <= row_ids[:-1])))
        found.rows(ROWS, "(corpus_id, row_id) do not rise", fall, flat, lambda r: row_ids[r])
    else:
        ahead = row_ids != flat.first_row + np.arange(columns.num_rows)
        found.rows(ROWS, "row_id is not the row's index", ahead, flat, lambda r: row_ids[r])
    size = (tokens.lengths < 1) | (tokens.lengths > header.max_length)
    found.rows(ROWS, f"the row has not 1 to {header.max_length} tokens", size, flat, _length(tokens))
    outside = (tokens.values < 0) | (tokens.values >= header.vocab_size)
    strange = _any(tokens, outside)
    what = f"input_ids has ids outside 0 to {header.vocab_size - 1}"
    found.rows(ROWS, what, strange, flat, lambda r: tokens[r][_outside(tokens[r], header.vocab_size)][0])
    negative = columns.scalars["scored_bytes"] < 0
    found.rows(ROWS, "scored_bytes is negative", negative, flat, lambda r: columns.scalars["scored_bytes"][r])
    _check_segments(flat, found)
    _check_prompt_runs(flat, found)


def _check_segments(flat: Flat, found: Findings) -> None:
    starts, tokens = flat.columns.lists["segment_starts"], flat.columns.lists["input_ids"]
    row = owners(starts.lengths)
    first = np.zeros(len(row), np.bool_)
    first[starts.offsets[:-1][starts.lengths > 0]] = True
    falling = ~first & (np.diff(starts.values, prepend=0) <= 0)
    late = (starts.values < 0) | (starts.values >= tokens.lengths[row])
    wrong = (starts.lengths == 0) | _any(starts, falling | late | (first & (starts.values != 0)))
    what = "segment_starts does not rise from 0 inside the row"
    found.rows(ROWS, what, wrong, flat, lambda r: starts[r].tolist())
    if wrong.any():
        return
    begins = np.zeros(len(flat.tokens), np.bool_)
    begins[tokens.offsets[row] + starts.values] = True
    crossing = begins[flat.token + 1]
    what = "a position before a segment start is scored"
    found.positions(ROWS, what, crossing, flat, lambda p: f"segments start at {starts[flat.row[p]].tolist()}")


def _check_prompt_runs(flat: Flat, found: Findings) -> None:
    runs, tokens = flat.columns.lists["prompt_runs"], flat.columns.lists["input_ids"]
    row = owners(runs.lengths)
    start, end = runs.values[:, 0], runs.values[:, 1]
    earlier_end = np.where(np.diff(row, prepend=-1) == 0, np.append(0, end[:-1]), 0)
    bad = (start < earlier_end) | (start >= end) | (end > tokens.lengths[row])
    wrong = _any(runs, bad)
    what = "prompt_runs are not rising, separate ranges inside the row"
    found.rows(ROWS, what, wrong, flat, lambda r: runs[r].tolist())
    if wrong.any():
        return
    steps = np.zeros(len(flat.tokens) + 1, np.int64)
    np.add.at(steps, tokens.offsets[row] + start, 1)
    np.add.at(steps, tokens.offsets[row] + end, -1)
    inside = np.cumsum(steps)[:-1] > 0
    what = "the label is a prompt token"
    found.positions(ROWS, what, inside[flat.token + 1], flat, lambda p: f"runs {runs[flat.row[p]].tolist()}")


def _any(lists: Lists, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[R] whether any value of a row's list is flagged."""
    return np.bincount(owners(lists.lengths), weights=flags, minlength=len(lists.lengths)) > 0


def _outside(ids: NDArray[Any], vocab_size: int) -> NDArray[np.bool_]:
    return (ids < 0) | (ids >= vocab_size)


def _length(lists: Lists) -> Callable[[int], str]:
    return lambda r: f"length {lists.lengths[r]}"
