"""Conversions keep what a dataset is, never overwrite, go on after a kill, and end in the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import DatasetWriter, ShardError, convert, open_dataset, verify
from shards.manifest import load_manifest, save_manifest


@pytest.fixture
def plain(build, tmp_path) -> Path:
    header = build.make_header(11, optional_columns=("tail_logprobs", "logsumexp"))
    return build.write_dataset(tmp_path / "plain", header, [build.make_row(i, header) for i in range(11)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_compact_to_plain_to_compact_gives_the_same_bytes(plain, tmp_path):
    convert(plain, tmp_path / "compact", "compact")
    convert(tmp_path / "compact", tmp_path / "again", "plain")
    convert(tmp_path / "again", tmp_path / "end", "compact")
    assert content(tmp_path / "end") == content(tmp_path / "compact")


def test_a_conversion_keeps_fingerprints_rows_and_counts_and_passes_verify(plain, tmp_path):
    manifest = convert(plain, tmp_path / "compact", "compact")
    before = load_manifest(plain)
    assert before.header.difference(manifest.header) == "encoding: 'plain' against 'compact'"
    for ours, theirs in zip(before.shards, manifest.shards, strict=True):
        assert replace(ours, bytes=0, sha256="") == replace(theirs, bytes=0, sha256="")
    convert(tmp_path / "compact", tmp_path / "again", "plain")
    for folder in ("compact", "again"):
        assert verify(tmp_path / folder).problems == []
    assert open_dataset(tmp_path / "again").header.extra == {"split": "train", "decoded_from": "compact"}
    for a, b in zip(open_dataset(plain).rows(), open_dataset(tmp_path / "compact").rows(), strict=True):
        np.testing.assert_array_equal(a.input_ids, b.input_ids)
        np.testing.assert_array_equal(a.capture.tail_ids, b.capture.tail_ids)
        np.testing.assert_array_equal(a.capture.label_rank, b.capture.label_rank)
        np.testing.assert_array_equal(a.capture.logsumexp, b.capture.logsumexp)
        np.testing.assert_allclose(a.capture.rest_mass, b.capture.rest_mass, atol=0.25 / 128)


def test_arrays_of_a_compact_row_cannot_be_written_in_place(plain, tmp_path):
    convert(plain, tmp_path / "compact", "compact")
    row = open_dataset(tmp_path / "compact")[3]
    for array in (row.input_ids, row.capture.head_ids, row.capture.rest_mass, row.capture.tail_counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_an_interrupted_conversion_goes_on_where_it_stopped(plain, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(plain, tmp_path / "out", "compact", stop)
    sealed = (tmp_path / "out" / "shard-00001.arrow").stat().st_mtime_ns
    with pytest.raises(ShardError, match="not complete"):
        open_dataset(tmp_path / "out")
    convert(plain, tmp_path / "out", "compact")
    convert(plain, tmp_path / "whole", "compact")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert (tmp_path / "out" / "shard-00001.arrow").stat().st_mtime_ns == sealed


def test_what_is_there_is_never_overwritten(plain, tmp_path, build):
    before = content(plain)
    with pytest.raises(ShardError, match="is plain already"):
        convert(plain, tmp_path / "x", "plain")
    convert(plain, tmp_path / "compact", "compact")
    with pytest.raises(ShardError, match="holds a finished dataset, which is never overwritten"):
        convert(plain, tmp_path / "compact", "compact")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ShardError, match="is not empty"):
        convert(plain, tmp_path / "letters", "compact")
    other = build.make_header(11, encoding="compact", seed=4)
    DatasetWriter(tmp_path / "begun", other, [s.plan for s in load_manifest(plain).shards], 2)
    with pytest.raises(ShardError, match="begun with other settings"):
        convert(plain, tmp_path / "begun", "compact")
    corpus = build.make_header(1, kind="rows")
    build.write_dataset(tmp_path / "rows", corpus, [build.make_row(0, corpus)])
    with pytest.raises(ShardError, match="only captures are converted"):
        convert(tmp_path / "rows", tmp_path / "y", "compact")
    assert content(plain) == before


def test_a_source_that_lies_is_not_converted(build, tmp_path):
    header = build.make_header(3)
    rows = [build.make_row(i, header, length=20) for i in range(3)]
    lie = replace(rows[1].capture, label_rank=rows[1].capture.label_rank + np.uint32(1))
    build.write_dataset(tmp_path / "lies", header, [rows[0], replace(rows[1], capture=lie), rows[2]])
    with pytest.raises(ShardError, match=r"not converted, verify finds .* row 1, position"):
        convert(tmp_path / "lies", tmp_path / "out", "compact")
    assert not (tmp_path / "out").exists()


def test_any_order_has_the_same_entries_as_rank_order(plain, tmp_path):
    convert(plain, tmp_path / "compact", "compact")
    ranked, stored = (list(open_dataset(tmp_path / "compact", order=order).rows()) for order in ("rank", "any"))
    apart = 0
    for a, b in ((x.capture, y.capture) for x, y in zip(ranked, stored, strict=True)):
        for lengths, columns in (
            (a.head_lengths, ("head_ids", "head_logprobs")),
            (a.tail_lengths, ("tail_ids", "tail_counts", "tail_logprobs")),
        ):
            owner = np.repeat(np.arange(len(lengths)), lengths)
            orders = [np.lexsort((getattr(x, columns[0]), owner)) for x in (a, b)]
            for name in columns:
                np.testing.assert_allclose(
                    *(getattr(x, name)[o] for x, o in zip((a, b), orders, strict=True)), rtol=1e-6
                )
                apart += (getattr(a, name) != getattr(b, name)).sum()
    assert apart > 0


LIES = {
    "label_logprob is not the label's log-prob": lambda c: {"label_logprob": c.label_logprob - np.float32(0.1)},
    "label_rank": lambda c: {"label_rank": c.label_rank + np.uint32(2)},
    "entropy is below": lambda c: {"entropy": c.entropy * np.float32(0.1)},
    "the number of draws": lambda c: {"tail_counts": c.tail_counts + np.uint16(1)},
    "rest_mass at T = 2.0 is on the wrong side": lambda c: {"rest_mass": c.rest_mass * np.float32([1.0, 0.5])},
}


@pytest.mark.parametrize("told", LIES)
def test_verify_sees_through_lies_in_compact_shards(build, tmp_path, told):
    header = build.make_header(6, encoding="compact")
    rows = [build.make_row(i, header, length=60, label_boost=6.0) for i in range(6)]
    rows = [replace(row, capture=replace(row.capture, **LIES[told](row.capture))) for row in rows]
    build.write_dataset(tmp_path, header, rows)
    problems = verify(tmp_path).problems
    assert problems
    assert all(told in problem for problem in problems), problems


def test_compact_shards_that_disagree_with_themselves_are_named(plain, tmp_path, monkeypatch):
    convert(plain, tmp_path / "out", "compact")
    monkeypatch.setattr("shards.planes.FREQUENT", 1)  # the reader takes the order from the file, whatever made it
    assert verify(tmp_path / "out").problems == []
    manifest = load_manifest(tmp_path / "out")
    save_manifest(tmp_path / "out", replace(manifest, header=replace(manifest.header, vocab_size=51)))
    assert "it was written with other settings (vocab_size" in verify(tmp_path / "out").problems[0]


@pytest.mark.parametrize("changes", [{}, {"head_size": 0}, {"head_size": 80, "head_mass": 1.0}, {"must_keep": (4, 9)}])
def test_any_compact_dump_passes_verify(build, tmp_path, changes):
    header = build.make_header(9, encoding="compact", temperatures=(1.0, 2.0, 0.5), **changes)
    build.write_dataset(tmp_path, header, [build.make_row(i, header) for i in range(9)])
    assert verify(tmp_path).problems == []
    empty = build.make_header(2, encoding="compact", max_length=1)
    build.write_dataset(tmp_path / "empty", empty, [build.make_row(i, empty) for i in range(2)])
    assert verify(tmp_path / "empty").problems == []
    assert open_dataset(tmp_path / "empty")[1].num_scored == 0
