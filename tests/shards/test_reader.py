"""Rows come back as they were written, wherever they are read from."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Capture, DatasetWriter, Row, ShardError, open_dataset, plan_shards, verify
from shards.manifest import load_manifest, save_manifest
from shards.rounding import round_mantissa


def assert_same_row(read: Row, written: Row) -> None:
    for field in fields(Row):
        if field.name != "capture":
            assert_same(getattr(read, field.name), getattr(written, field.name), field.name)
    assert (read.capture is None) == (written.capture is None)
    for field in fields(Capture) if read.capture and written.capture else ():
        if field.name != "dead_row_mass":
            assert_same(getattr(read.capture, field.name), getattr(written.capture, field.name), field.name)


def assert_same(read, written, name: str) -> None:
    if isinstance(written, np.ndarray):
        if written.dtype == np.float32:
            written = round_mantissa(written)
        assert read.dtype == written.dtype, name
        np.testing.assert_array_equal(read, written, err_msg=name)
    else:
        assert read == written, name


@settings(max_examples=15, deadline=None)
@given(
    num_rows=st.integers(0, 9),
    rows_per_shard=st.integers(1, 6),
    rows_per_batch=st.integers(1, 4),
    changes=st.fixed_dictionaries(
        {
            "head_size": st.sampled_from([0, 1, 6, 80]),
            "head_mass": st.sampled_from([0.5, 1.0]),
            "must_keep": st.sampled_from([(), (4, 9)]),
            "tail": st.sampled_from([{}, {"draws": 5}, {"draws_per_mass": 20.0}]),
            "temperatures": st.sampled_from([(1.0,), (1.0, 2.0, 0.5)]),
            "optional_columns": st.sampled_from([(), ("tail_logprobs",), ("tail_logprobs", "logsumexp")]),
            "kind": st.sampled_from(["rows", "captures", "captures"]),
            "max_length": st.sampled_from([1, 2, 20]),
        }
    ),
    seed=st.integers(0, 1000),
)
def test_any_dataset_reads_back_as_written_and_passes_verify(
    build, num_rows, rows_per_shard, rows_per_batch, changes, seed
):
    header = build.make_header(num_rows, **changes)
    rows = [build.make_row(i, header, seed=seed) for i in range(num_rows)]
    with tempfile.TemporaryDirectory() as folder:
        build.write_dataset(Path(folder), header, rows, rows_per_shard=rows_per_shard, rows_per_batch=rows_per_batch)
        dataset = open_dataset(Path(folder))
        assert len(dataset) == num_rows
        assert dataset.header == header
        for read, written in zip(dataset.rows(), rows, strict=True):
            assert_same_row(read, written)
        assert verify(Path(folder)).problems == []


@pytest.fixture
def folder(build, tmp_path):
    header = build.make_header(23)
    return build.write_dataset(tmp_path, header, [build.make_row(i, header) for i in range(23)])


def test_rows_are_found_by_index_in_any_order_with_a_cache_too_small_for_two_batches(build, folder):
    dataset = open_dataset(folder)
    dataset._cache_bytes = 1
    indices = [22, 0, 7, 7, 13, 1]
    assert [row.row_id for row in dataset.read(indices)] == indices
    assert dataset[-1].row_id == 22
    assert [row.row_id for row in dataset.rows(4, 7)] == [4, 5, 6]
    assert len(dataset._cache) == 1
    for index in indices:
        assert_same_row(dataset[index], build.make_row(index, dataset.header))
    with pytest.raises(IndexError, match="row 23 of 23"):
        dataset[23]


def test_unknown_documents_come_back_as_none(build, tmp_path):
    header = build.make_header(1, kind="rows")
    row = Row(0, np.array([1, 2], np.int32), np.zeros(1, np.int32), np.empty((0, 2), np.int32), np.array([True]))
    build.write_dataset(tmp_path, header, [row])
    read = open_dataset(tmp_path)[0]
    assert (read.document_ids, read.continued, read.source) == (None, None, "")
    assert read.prompt_runs.shape == (0, 2)


def test_a_forked_or_pickled_dataset_reads_the_same_rows(folder):
    dataset = open_dataset(folder)
    expected = dataset[9].capture.head_ids.tolist()
    assert pickle.loads(pickle.dumps(dataset))[9].capture.head_ids.tolist() == expected
    child = os.fork()
    if child == 0:
        same = dataset[9].capture.head_ids.tolist() == expected and dataset[20].row_id == 20
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_arrays_of_a_row_cannot_be_written_in_place(folder):
    with pytest.raises(ValueError, match="read-only"):
        open_dataset(folder)[0].input_ids[0] = 1


def test_an_unfinished_dataset_is_refused_with_how_far_it_is(build, tmp_path):
    header = build.make_header(6)
    writer = DatasetWriter(tmp_path, header, plan_shards(6, 4))
    writer.write(writer.plan[0], [build.make_row(i, header) for i in range(4)])
    with pytest.raises(ShardError, match=r"not complete \(4 of 6 rows.*run the stage"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "missing; restore it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "bytes, .* in the manifest"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "sha256 is"),
    ],
)
def test_a_harmed_shard_is_named_when_a_row_of_it_is_read(folder, harm, message):
    harm(folder / "shard-00001.arrow")
    dataset = open_dataset(folder)
    assert dataset[0].row_id == 0
    with pytest.raises(ShardError, match=rf"shard-00001\.arrow: .*{message}"):
        dataset[5]


def test_a_shard_of_another_teacher_does_not_belong_here(build, folder, tmp_path):
    other = build.make_header(23, fingerprints={"teacher": "xx"})
    build.write_dataset(tmp_path / "other", other, [build.make_row(i, other) for i in range(23)])
    (tmp_path / "other" / "shard-00002.arrow").replace(folder / "shard-00002.arrow")
    manifest, shards = load_manifest(folder), list(load_manifest(folder).shards)
    shards[2] = load_manifest(tmp_path / "other").shards[2]
    save_manifest(folder, replace(manifest, shards=tuple(shards)))
    with pytest.raises(ShardError, match=r"shard-00002\.arrow: does not belong here: .*other settings \(fingerprints:"):
        open_dataset(folder)[12]
