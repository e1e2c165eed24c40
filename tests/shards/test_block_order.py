"""The block shuffle: a permutation that reads shards in sequence, shared by any number of ranks, resumable anywhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Layout, block_order, rank_slice, step_rows, steps_per_epoch
from shards.order import OPEN_SHARDS, WINDOW_BLOCKS

SMALL = settings(max_examples=60, deadline=None)
LAYOUTS = st.builds(Layout, st.lists(st.integers(1, 40), max_size=12).map(tuple), st.integers(1, 9))


@SMALL
@given(st.integers(0, 2**40), st.integers(0, 1000), LAYOUTS)
def test_an_epoch_is_a_permutation_and_a_pure_function(seed, epoch, layout):
    order = block_order(seed, epoch, layout)
    assert np.array_equal(np.sort(order), np.arange(sum(layout.shard_rows)))
    block_order(seed + 1, epoch, layout), block_order(seed + 2, epoch, layout)  # drive it out of the cache
    assert np.array_equal(block_order(seed, epoch, layout), order)


@SMALL
@given(st.integers(0, 99), LAYOUTS)
def test_shards_are_read_once_around_block_after_block_and_blocks_stay_in_one_window(seed, layout):
    order = block_order(seed, 0, layout)
    firsts = np.concatenate([[0], np.cumsum(layout.shard_rows)])
    shard = np.searchsorted(firsts, order, side="right") - 1
    block = (order - firsts[shard]) // layout.block
    first_use: dict[tuple[int, int], int] = {}
    last_use: dict[tuple[int, int], int] = {}
    for at, key in enumerate(zip(shard.tolist(), block.tolist(), strict=True)):
        first_use.setdefault(key, at)
        last_use[key] = at
    span = WINDOW_BLOCKS * layout.block
    assert all(last_use[key] - first_use[key] < span for key in first_use)
    for number in range(len(layout.shard_rows)):
        count = -(-layout.shard_rows[number] // layout.block)
        mine = [(number, b) for b in range(count)]
        for start in range(
            count
        ):  # one rotation of the blocks keeps their windows in order, up to the shuffle inside a window
            turned = [mine[(start + i) % count] for i in range(count)]
            if all(first_use[a] - last_use[b] < span for a, b in pairwise(turned)):
                break
        else:
            pytest.fail(f"shard {number} is not read in sequence")


def test_the_order_is_pinned_for_ever():
    assert block_order(7, 3, Layout((5, 4, 6), 2)).tolist() == [14, 6, 10, 0, 1, 11, 12, 2, 13, 5, 4, 7, 3, 9, 8]


def test_no_more_than_the_open_shards_are_read_at_a_time():
    layout = Layout((8,) * 20, 2)
    shard = block_order(1, 0, layout) // 8
    seen = [set(part.tolist()) for part in np.split(shard, [OPEN_SHARDS * 8, 2 * OPEN_SHARDS * 8])]
    assert [len(part) for part in seen] == [8, 8, 4]


@SMALL
@given(
    layout=st.builds(Layout, st.lists(st.integers(1, 30), min_size=1, max_size=6).map(tuple), st.integers(1, 7)),
    by_blocks=st.booleans(),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    worlds=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    stops=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_any_worlds_one_after_the_other_read_each_row_exactly_once_an_epoch(
    layout, by_blocks, micro, accumulation, worlds, stops
):
    """Stop after any number of steps and go on with another number of ranks, global batch unchanged."""
    num_rows, global_batch = sum(layout.shard_rows), micro * accumulation * worlds[0]
    steps, step, read, turn = steps_per_epoch(num_rows, global_batch), 0, [], 0
    while step < steps:
        world = worlds[turn % len(worlds)]
        for _ in range(stops[turn % len(stops)]):
            if step == steps:
                break
            rows, epoch = step_rows(3, step, num_rows, global_batch, layout if by_blocks else None)
            assert epoch == 0
            for rank in range(world):
                read += [row for part in rank_slice(rows, rank, world, micro, global_batch) for row in part]
            step += 1
        turn += 1
    assert sorted(read) == list(range(num_rows))
