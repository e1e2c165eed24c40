"""Samples, splits and merges: rows unchanged, disjoint, refused where they do not fit, whole or not there at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from shards import UserError, convert, open_dataset, verify
from shards.derive import merge, sample, split


def facts(row):
    values = asdict(row)
    capture = values.pop("capture") or {}
    capture.pop("dead_row_mass", None)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in (values | capture).items()}


@pytest.fixture
def make(build, tmp_path):
    def make(name: str, rows: int = 23, corpus: str = "cc", **changes) -> Path:
        header = build.make_header(rows, **changes)
        header = replace(header, fingerprints=header.fingerprints | {"corpus": corpus})
        return build.write_dataset(tmp_path / name, header, [build.make_row(i, header) for i in range(rows)])

    return make


@pytest.mark.parametrize("encoding", ["plain", "compact"])
def test_a_sample_holds_the_same_rows_in_order_and_verifies(make, tmp_path, encoding):
    source = make("source")
    if encoding == "compact":
        convert(source, tmp_path / "compact", "compact")
        source = tmp_path / "compact"
    manifest = sample(source, tmp_path / "out", 9, seed=3)
    dataset, whole = open_dataset(tmp_path / "out"), open_dataset(source)
    ids = [row.row_id for row in dataset.rows()]
    assert ids == sorted(set(ids))
    assert len(ids) == 9
    assert [facts(row) for row in dataset.rows()] == [facts(whole[i]) for i in ids]
    assert dataset.header.fingerprints == whole.header.fingerprints
    assert dataset.header.encoding == encoding
    assert verify(tmp_path / "out").problems == []
    assert manifest.dead_row_mass > 0
    sample(source, tmp_path / "again", 9, seed=3)
    sample(source, tmp_path / "other", 9, seed=4)
    assert (tmp_path / "again" / "dataset.json").read_bytes() == (tmp_path / "out" / "dataset.json").read_bytes()
    assert [row.row_id for row in open_dataset(tmp_path / "other").rows()] != ids


@pytest.mark.parametrize("by", ["document", "row"])
def test_the_parts_of_a_split_are_disjoint_and_together_the_whole(make, tmp_path, by):
    source = make("source")
    split(source, (tmp_path / "a", tmp_path / "b"), 17, seed=1, by=by)
    a, b = ({row.row_id for row in open_dataset(tmp_path / part).rows()} for part in "ab")
    assert len(a) == 17
    assert not a & b
    assert a | b == set(range(23))
    assert verify(tmp_path / "a").problems == verify(tmp_path / "b").problems == []


def test_rows_that_share_a_document_stay_together(build, tmp_path):
    header = build.make_header(12)
    rows = [build.make_row(i, header, length=20) for i in range(12)]
    rows = [replace(row, document_ids=np.full(len(row.segment_starts), i // 3, np.int64)) for i, row in enumerate(rows)]
    build.write_dataset(tmp_path / "source", header, rows)
    first, second = split(tmp_path / "source", (tmp_path / "a", tmp_path / "b"), 7)
    assert (first.header.num_rows, second.header.num_rows) == (6, 6)
    documents = [{int(d) for row in open_dataset(tmp_path / part).rows() for d in row.document_ids} for part in "ab"]
    assert not documents[0] & documents[1]
    with pytest.raises(UserError, match="hang together by shared documents"):
        split(tmp_path / "source", (tmp_path / "c", tmp_path / "d"), 2)
    assert not (tmp_path / "c").exists()


def test_a_merge_tells_corpora_apart_and_does_not_depend_on_the_order_given(make, tmp_path):
    one, two = make("one", 7, corpus="zz"), make("two", 9, corpus="aa", max_length=32)
    merge([one, two], tmp_path / "ab")
    merge([two, one], tmp_path / "ba")
    files = sorted(path.name for path in (tmp_path / "ab").iterdir())
    assert [(tmp_path / "ab" / f).read_bytes() for f in files] == [(tmp_path / "ba" / f).read_bytes() for f in files]
    merged = open_dataset(tmp_path / "ab")
    assert [(r.corpus_id, r.row_id) for r in merged.rows()] == [(0, i) for i in range(9)] + [(1, i) for i in range(7)]
    assert merged.header.extra["corpora"] == ["aa", "zz"]
    assert merged.header.fingerprints["corpus"] == {"0": "aa", "1": "zz"}
    assert merged.header.max_length == 64
    assert facts(merged[9]) | {"corpus_id": 0} == facts(open_dataset(one)[0])
    assert verify(tmp_path / "ab").problems == []
    merge([tmp_path / "ab", make("three", 4, corpus="mm")], tmp_path / "abc")
    assert open_dataset(tmp_path / "abc").header.extra["corpora"] == ["aa", "mm", "zz"]
    assert verify(tmp_path / "abc").problems == []


def test_the_parts_of_a_split_merge_to_the_rows_that_were_split(make, tmp_path):
    source = make("source")
    split(source, (tmp_path / "a", tmp_path / "b"), 10)
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "m")
    merged = open_dataset(tmp_path / "m")
    assert [facts(row) for row in merged.rows()] == [facts(row) for row in open_dataset(source).rows()]
    assert merged.header.fingerprints == open_dataset(source).header.fingerprints
    with pytest.raises(UserError, match=r"row 0 of the corpus cc is in .* as well"):
        merge([source, tmp_path / "m"], tmp_path / "twice")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head_size": 5}, "head_size is 5, 6 in"),
        ({"temperatures": (1.0,)}, "temperatures is"),
        ({"fingerprints": {"teacher": {"weights": "xx"}, "tokenizer": "bb", "chat_template": ""}}, "teacher is"),
        ({"fingerprints": {"teacher": {"weights": "aa"}, "tokenizer": "xx", "chat_template": ""}}, "tokenizer is 'xx'"),
        ({"optional_columns": ("logsumexp",)}, "optional_columns is"),
        ({"kind": "rows"}, "kind is 'rows'"),
    ],
)
def test_what_was_made_otherwise_is_not_merged(make, tmp_path, changes, named):
    with pytest.raises(UserError, match=named):
        merge([make("one", 4), make("two", 4, corpus="dd", **changes)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_and_untouched(make, tmp_path):
    source = make("source")
    (tmp_path / "out").mkdir()
    for attempt in (
        lambda: sample(source, tmp_path / "out", 3),
        lambda: split(source, (tmp_path / "new", tmp_path / "out"), 3),
        lambda: merge([source], tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="exists already and is never overwritten"):
            attempt()
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_an_error_in_the_middle_leaves_nothing(make, tmp_path):
    def fail(done: int, total: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        sample(make("source"), tmp_path / "out", 12, progress=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_killed_at_random_moments_the_output_is_whole_or_not_there(make, tmp_path):
    source, out = make("source"), tmp_path / "out"
    code = "import sys, pathlib as p, shards.derive as d; print('go', flush=True)"
    code += "; d.sample(p.Path(sys.argv[1]), p.Path(sys.argv[2]), 20)"
    dice = random.Random(5)
    for _ in range(4):
        command = [sys.executable, "-c", code, str(source), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(dice.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        if out.exists():
            assert verify(out).problems == []
            (out / "dataset.json").unlink()
            out.rename(tmp_path / f"done-{dice.random()}")
    sample(source, out, 20)
    assert verify(out).problems == []
    assert not (tmp_path / ".out.tmp").exists()
