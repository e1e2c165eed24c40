"""The order of rows: a permutation per epoch, and any number of ranks shares it without gap or repeat."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import epoch_order, rank_slice, step_rows, steps_per_epoch

SMALL = settings(max_examples=60, deadline=None)


@SMALL
@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 300))
def test_an_epoch_is_a_permutation(seed, epoch, num_rows):
    assert np.array_equal(np.sort(epoch_order(seed, epoch, num_rows)), np.arange(num_rows))


def test_the_order_is_pinned_for_ever():
    assert epoch_order(7, 3, 10).tolist() == [7, 1, 9, 6, 0, 4, 2, 8, 3, 5]


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@SMALL
@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 3))
def test_the_steps_of_an_epoch_read_every_row_once(num_rows, global_batch, epoch):
    steps = steps_per_epoch(num_rows, global_batch)
    parts = [step_rows(5, epoch * steps + s, num_rows, global_batch) for s in range(steps)]
    assert {e for _, e in parts} == {epoch}
    assert [len(rows) for rows, _ in parts[:-1]] == [global_batch] * (steps - 1)
    assert np.array_equal(np.concatenate([rows for rows, _ in parts]), epoch_order(5, epoch, num_rows))


@SMALL
@given(st.integers(0, 200), st.integers(1, 64), st.integers(1, 9))
def test_the_slices_of_any_world_size_partition_the_batch_in_equally_many_micro_batches(size, world, micro):
    rows = np.random.default_rng(size).permutation(size)
    slices = [rank_slice(rows, rank, world, micro) for rank in range(world)]
    assert sorted(row for rank in slices for batch in rank for row in batch) == list(range(size))
    assert len({len(rank) for rank in slices}) == 1
    assert all(len(batch) <= micro for rank in slices for batch in rank)
    rounds = [[row for rank in slices for row in rank[a]] for a in range(len(slices[0]))]
    assert [row for part in rounds for row in part] == rows.tolist()


def test_a_short_batch_is_filled_with_empty_micro_batches_up_to_the_global_batch():
    assert rank_slice([1, 2, 3], 0, 2, 2, global_batch=8) == [[1, 2], []]
    assert rank_slice([1, 2, 3], 1, 2, 2, global_batch=8) == [[3], []]
