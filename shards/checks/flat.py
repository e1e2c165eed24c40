"""One record batch laid out flat: every token, scored position, head entry and tail entry knows its owner.

Shapes: R rows, N scored positions of all rows, H head entries, S tail entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns
from ..lists import Lists

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Flat:
    """Where the scored positions of a batch lie. Needs `scored` to fit `input_ids` (see `rows.check_shapes`)."""

    columns: Columns
    first_row: int
    row: NDArray[np.int64]  # [N] row inside the batch
    index: NDArray[np.int64]  # [N] position i inside the row; the label is token i + 1
    token: NDArray[np.int64]  # [N] flat index of token i

    @property
    def num_positions(self) -> int:
        return len(self.row)

    @property
    def tokens(self) -> Array:
        return self.columns.lists["input_ids"].values

    @property
    def labels(self) -> Array:
        return self.tokens[self.token + 1]

    def column(self, name: str) -> Array:
        """Flat values of a list column."""
        return self.columns.lists[name].values


@dataclass(frozen=True, eq=False)
class Entries:
    """Head or tail entries of all positions: entry e belongs to position `owner[e]`, at place `place[e]` there."""

    lengths: NDArray[np.int64]  # [N]
    owner: NDArray[np.int64]  # [entries]
    place: NDArray[np.int64]  # [entries]

    def sum(self, values: Array) -> NDArray[np.float64]:
        """[N] sums of [entries] values."""
        return np.bincount(self.owner, values.astype(np.float64), len(self.lengths)).astype(np.float64)

    def any(self, flags: Array) -> NDArray[np.bool_]:
        """[N] whether any entry is flagged."""
        return self.sum(flags) > 0


def flatten(columns: Columns, first_row: int) -> Flat:
    """Lay out one decoded batch whose first row is `first_row` of the dataset."""
    scored, tokens = columns.lists["scored"], columns.lists["input_ids"]
    at = np.flatnonzero(scored.values)
    row = owners(scored.lengths)[at]
    index = at - scored.offsets[row]
    return Flat(columns, first_row, row, index, tokens.offsets[row] + index)


def owners(lengths: Array) -> NDArray[np.int64]:
    """[sum(lengths)] which list each flat value belongs to."""
    return np.repeat(np.arange(len(lengths)), lengths)


def entries(lengths: Array) -> Entries:
    """Cut flat entries by their numbers [N]."""
    wide = lengths.astype(np.int64)
    owner = owners(wide)
    return Entries(wide, owner, np.arange(len(owner)) - (np.cumsum(wide) - wide)[owner])


def per_row_sum(flat: Flat, lists: Lists) -> NDArray[np.int64]:
    """[R] sums of a list column's values."""
    sums = np.bincount(owners(lists.lengths), weights=lists.values, minlength=flat.columns.num_rows)
    return sums.astype(np.int64)
