"""inspect shows every scored position with the ids and numbers that were stored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from shards import open_dataset
from shards.inspect import inspect


def words(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def test_positions_show_label_head_and_tail_with_text(build, tmp_path):
    header = build.make_header(4)
    build.write_dataset(tmp_path, header, [build.make_row(i, header, length=20) for i in range(4)])
    dataset = open_dataset(tmp_path)
    shown = inspect(tmp_path, rows=[2, 0], decode=words)
    assert [(s["row"], s["position"]) for s in shown] == [(r, i) for r in (2, 0) for i in dataset[r].scored_positions()]
    assert json.loads(json.dumps(shown)) == shown
    row, last = dataset[2], shown[dataset[2].num_scored - 1]
    position = row.scored_positions()[-1]
    assert last["label_text"] == words([row.input_ids[position + 1]])
    start = max(s for s in row.segment_starts if s <= position)
    assert last["text"] == words(row.input_ids[start : position + 1])
    count = int(row.capture.head_lengths[-1])
    assert [entry["id"] for entry in last["head"]] == row.capture.head_ids[-count:].tolist()
    assert last["head"][0]["text"] == words([row.capture.head_ids[-count]])
    assert sum(np.exp(entry["logprob"]) for entry in last["head"]) + last["rest_mass"][0] == pytest.approx(1, abs=1e-3)
    draws = int(row.capture.tail_lengths[-1])
    assert [entry["count"] for entry in last["tail"]] == row.capture.tail_counts[-draws:].tolist()


def test_a_prepared_corpus_shows_labels_only(build, tmp_path):
    header = build.make_header(2, kind="rows")
    rows = [replace(build.make_row(i, header, length=9), source="tales") for i in range(2)]
    build.write_dataset(tmp_path, header, rows)
    shown = inspect(tmp_path)
    assert len(shown) == sum(row.num_scored for row in rows)
    assert set(shown[0]) == {"row", "source", "position", "token", "label"}
    assert [s["label"] for s in shown] == [label for row in rows for label in row.labels().tolist()]
