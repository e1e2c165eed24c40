"""Which rows a step reads, on which rank: pure functions of (seed, epoch), never of world size or history.

So a run resumes exactly, on any number of ranks, with nothing to restore but the step. Reading is in `reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def epoch_order(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    """[num_rows] a permutation of the rows; read-only.

    Sorted raw Philox words, because NumPy promises the raw stream for ever and `Generator.permutation` not.
    """
    assert seed >= 0
    assert epoch >= 0
    return _epoch_order(seed, epoch, num_rows)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def steps_per_epoch(num_rows: int, global_batch: int) -> int:
    """Steps that read every row once; the last may be short."""
    return -(-num_rows // global_batch)


def step_rows(seed: int, step: int, num_rows: int, global_batch: int) -> tuple[NDArray[np.int64], int]:
    """(rows of the global batch [<= global_batch], epoch) of step `step`, counted from 0 over all epochs."""
    assert num_rows > 0
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_rows, global_batch))
    start = step_in_epoch * global_batch
    return epoch_order(seed, epoch, num_rows)[start : start + global_batch], epoch


def rank_slice(
    rows: Sequence[int] | NDArray[np.int64], rank: int, world: int, micro: int, global_batch: int | None = None
) -> list[list[int]]:
    """The micro-batches of one rank. The ranks' slices partition `rows`, and all ranks get equally many micro-batches.

    A short batch leaves some of them short or empty: those are run with zero weight. Give `global_batch` to get
    exactly its number of micro-batches (gradient accumulation steps) also when `rows` is short.
    """
    assert 0 <= rank < world
    size = len(rows) if global_batch is None else global_batch
    assert len(rows) <= size
    per_round = world * micro
    starts = range(rank * micro, -(-size // per_round) * per_round, per_round)
    return [[int(row) for row in rows[start : start + micro]] for start in starts]
