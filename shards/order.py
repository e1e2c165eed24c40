"""Which rows a step reads, on which rank: pure functions of (seed, epoch), never of world size or history.

Rows are shuffled one by one (`epoch_order`), or by blocks for reading in sequence (`block_order`). Either way a run
resumes exactly, on any number of ranks, with nothing to restore but the step. Reading is in `reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


OPEN_SHARDS = 8
"""Shards that a block shuffle reads at the same time."""
WINDOW_BLOCKS = 8
"""Blocks whose rows it mixes."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of a dataset lie on disk, as far as an order wants to know it."""

    shard_rows: tuple[int, ...]
    block: int
    """Rows that are decoded at once: the dataset's rows_per_batch."""


def block_order(seed: int, epoch: int, layout: Layout) -> NDArray[np.int64]:
    """[rows] a permutation of the rows that reads every shard once around, block after block; read-only.

    The shards come in random order, `OPEN_SHARDS` of them at a time. The blocks of these are interleaved at random;
    inside a shard they keep their order, from a random block on and around the end. The rows of each `WINDOW_BLOCKS`
    blocks in that sequence are then shuffled. So a block is needed in one window only, and a reader that keeps one
    window decodes each block once an epoch.
    """
    assert seed >= 0
    assert epoch >= 0
    return _block_order(seed, epoch, layout)


@lru_cache(maxsize=2)
def _block_order(seed: int, epoch: int, layout: Layout) -> NDArray[np.int64]:
    source = np.random.Philox(np.random.SeedSequence([seed, epoch, 1]))
    first_rows = np.concatenate([[0], np.cumsum(layout.shard_rows)]).astype(np.int64)
    blocks = -(-np.array(layout.shard_rows, np.int64) // layout.block)
    shards = np.argsort(source.random_raw(len(blocks)), kind="stable") if len(blocks) else np.zeros(0, np.int64)
    starts: list[int] = []
    stops: list[int] = []
    for at in range(0, len(shards), OPEN_SHARDS):
        group = shards[at : at + OPEN_SHARDS]
        turns = np.repeat(group, blocks[group])
        turns = turns[np.argsort(source.random_raw(len(turns)), kind="stable")]
        offsets = dict(zip(group.tolist(), source.random_raw(len(group)).tolist(), strict=True))
        for shard in turns.tolist():
            block = offsets[shard] % int(blocks[shard])
            offsets[shard] = block + 1
            starts.append(int(first_rows[shard]) + block * layout.block)
            stops.append(min(starts[-1] + layout.block, int(first_rows[shard + 1])))
    sizes = np.array(stops, np.int64) - np.array(starts, np.int64)
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.repeat(np.array(starts, np.int64), sizes) + inside
    window = np.repeat(np.arange(len(sizes)) // WINDOW_BLOCKS, sizes)
    order = rows[np.lexsort((source.random_raw(len(rows)), window))]
    order.setflags(write=False)
    return order


def steps_per_epoch(num_rows: int, global_batch: int) -> int:
    """Steps that read every row once; the last may be short."""
    return -(-num_rows // global_batch)


def step_rows(
    seed: int, step: int, num_rows: int, global_batch: int, layout: Layout | None = None
) -> tuple[NDArray[np.int64], int]:
    """(rows of the global batch [<= global_batch], epoch) of step `step`, counted from 0 over all epochs.

    With a `layout` in `block_order`, without one in `epoch_order`.
    """
    assert num_rows > 0
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_rows, global_batch))
    start = step_in_epoch * global_batch
    order = epoch_order(seed, epoch, num_rows) if layout is None else block_order(seed, epoch, layout)
    assert len(order) == num_rows
    return order[start : start + global_batch], epoch


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
