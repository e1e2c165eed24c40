"""Batches: the same rows and positions whatever the number of ranks, and from wherever the run starts."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards import open_dataset, steps_per_epoch
from shards.errors import UserError
from student_train.config import LossConfig
from student_train.data import Slice, Wanted, collate, label_counts, load_step, log_unigram, prefetched
from student_train.fit import check_sources, temperature_column


def slices(world, micro, global_batch=8):
    return [Slice(seed=3, global_batch=global_batch, micro=micro, rank=r, world=world) for r in range(world)]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 2), (4, 1), (4, 2)])
def test_the_ranks_together_see_each_row_of_an_epoch_once(shards, world, micro):
    data = open_dataset(shards / "train")
    straight = [load_step(data, slices(1, 8)[0], s).rows[0] for s in range(steps_per_epoch(len(data), 8))]
    seen = []
    for step, rows in enumerate(straight):
        parts = [load_step(data, s, step) for s in slices(world, micro)]
        assert {len(p.micro) for p in parts} == {8 // (world * micro)}
        ours = [row for p in parts for m in p.rows for row in m]
        assert Counter(ours) == Counter(rows)
        assert sum(p.weight for p in parts) == sum(p.scored for p in parts) == sum(data[r].num_scored for r in rows)
        seen += ours
    assert sorted(seen) == list(range(len(data)))


def test_an_epoch_shared_by_two_then_one_then_three_ranks_has_each_row_once(shards):
    data = open_dataset(shards / "train")
    seen = []
    for step in range(steps_per_epoch(len(data), 12)):
        parts = [load_step(data, s, step) for s in slices([2, 1, 3][step % 3], 2, global_batch=12)]
        seen += [row for p in parts for m in p.rows for row in m]
    assert sorted(seen) == list(range(len(data)))


def test_a_run_that_starts_in_the_middle_sees_what_a_straight_run_sees(shards):
    data, ours = open_dataset(shards / "train"), slices(2, 2)[1]
    straight = [b.rows for b in prefetched(lambda s: load_step(data, ours, s), 0, 14)]
    resumed = [b.rows for b in prefetched(lambda s: load_step(data, ours, s), 9, 14)]
    assert resumed == straight[9:]
    assert len(set(straight)) == 14


def test_collate_pads_right_and_points_at_the_scored_positions(rows_of):
    rows = rows_of(5, 7)
    batch, targets = collate(rows)
    B, T = batch.input_ids.shape
    assert (5, max(r.num_tokens for r in rows)) == (B, T)
    expected_index, expected_labels = [], []
    for b, row in enumerate(rows):
        n = row.num_tokens
        assert batch.input_ids[b, :n].tolist() == row.input_ids.tolist()
        assert not batch.input_ids[b, n:].any()
        assert batch.lengths[b] == n
        assert torch.nonzero(batch.reset[b]).flatten().tolist() == row.segment_starts.tolist()
        assert batch.run_ids[b, :4].tolist() == [0, 0, 0, -1]
        for i in range(n - 1):
            if row.scored[i]:
                expected_index.append(b * T + i)
                expected_labels.append(int(row.input_ids[i + 1]))
    assert targets.index.tolist() == expected_index
    assert targets.labels.tolist() == expected_labels
    torch.testing.assert_close(targets.q.sum(1), torch.ones(len(expected_index)))


def test_no_rows_become_one_row_that_weighs_nothing():
    batch, targets = collate([])
    assert batch.input_ids.shape == (1, 2)
    assert targets.weight.tolist() == [0.0]


def test_an_error_while_reading_ahead_reaches_the_consumer_at_its_step():
    def load(step):
        if step == 3:
            raise ValueError("row 3")
        return step

    steps: Iterator = prefetched(load, 0, 9)
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(steps)


def test_label_counts_and_their_smoothed_unigram(shards, rows_of):
    counts = label_counts(open_dataset(shards / "train"), 37)
    assert counts.tolist() == np.bincount(np.concatenate([r.labels() for r in rows_of(45, 1)]), minlength=37).tolist()
    p = np.exp(log_unigram(np.asarray([6, 2, 0, 0])))
    # two distinct labels in eight: pseudo-count 2 / 4, unseen mass 2 * 0.5 / 10
    np.testing.assert_allclose(p, [0.65, 0.25, 0.05, 0.05], rtol=1e-6)


def test_rows_weigh_what_the_loss_asks_for(shards):
    data = open_dataset(shards / "train")
    loss = LossConfig(entropy_power=1, source_weights={"made-up": 0.25})
    batch = load_step(data, slices(1, 8)[0], 0, Wanted(loss))
    for _, targets in batch.micro:
        torch.testing.assert_close(targets.weight, 0.25 * (1 + targets.entropy))
    assert batch.weight == pytest.approx(sum(float(t.weight.sum()) for _, t in batch.micro))


def test_a_temperature_that_is_not_stored_is_refused_with_those_that_are(shards):
    header = open_dataset(shards / "train").header
    assert temperature_column(header, LossConfig(), shards) == 0
    tempered = LossConfig(forward_kl=1, temperature=3)
    assert temperature_column(replace(header, temperatures=(1.0, 3.0)), tempered, shards) == 1
    with pytest.raises(UserError, match=r"temperature: 3 is not stored in .*, which holds rest masses at 1;"):
        temperature_column(header, tempered, shards)


def test_weights_for_a_source_that_is_not_there_are_refused(shards):
    data = open_dataset(shards / "train")
    check_sources(data, LossConfig(source_weights={"made-up": 2}), shards)
    with pytest.raises(UserError, match=r"no row of .* comes from 'code'; its sources are made-up"):
        check_sources(data, LossConfig(source_weights={"code": 2}), shards)
    with pytest.raises(UserError, match="has weight 0"):
        check_sources(data, LossConfig(source_weights={"made-up": 0}), shards)
