"""FORMAT.md keeps its word: its snippets run as printed, and it names every column and manifest key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import shards
from shards import ShardPlan
from shards.header import Header
from shards.schema import arrow_schema

TEXT = (Path(shards.__file__).parent / "FORMAT.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def quickstart(build, tmp_path, monkeypatch):
    header = build.make_header(8)
    rows = [build.make_row(i, header, length=12) for i in range(8)]
    build.write_dataset(tmp_path / "dumps/quickstart/shards/train", header, rows)
    monkeypatch.chdir(tmp_path)
    return rows


def test_the_pyarrow_snippet_prints_the_heads_of_the_first_row(quickstart, capsys):
    exec(SNIPPETS[0], {})
    lines = capsys.readouterr().out.splitlines()
    row = quickstart[0]
    assert len(lines) == row.num_scored
    first = row.capture.head_ids[: row.capture.head_lengths[0]]
    position = row.scored_positions()[0]
    assert lines[0].startswith(f"{position} label {row.input_ids[position + 1]} head {first}")


def test_the_polars_snippet_gives_every_head_entry_its_position(quickstart):
    scope: dict = {}
    exec(SNIPPETS[1], scope)
    table = scope["table"]
    expected = [
        (row.row_id, n)
        for row in quickstart[:5]
        for n, length in enumerate(row.capture.head_lengths)
        for _ in range(length)
    ]
    assert table.select("row_id", "n").rows() == expected
    assert table["id"].to_list() == [int(i) for row in quickstart[:5] for i in row.capture.head_ids]


def test_the_metadata_snippet_prints_header_and_columns(quickstart, capsys):
    exec(SNIPPETS[2], {})
    printed = capsys.readouterr().out
    assert "'tokenizer': 'bb'" in printed
    assert "head_logprobs list" in printed


def test_the_page_names_every_column_header_field_and_manifest_key(build, tmp_path):
    header = build.make_header(1, optional_columns=("tail_logprobs", "logsumexp"))
    folder = build.write_dataset(tmp_path, header, [build.make_row(0, header)])
    manifest = json.loads((folder / "dataset.json").read_text())
    names = [*arrow_schema(header, ShardPlan(0, 0, 1), 1).names, *Header.__dataclass_fields__]
    names += [*manifest, *manifest["shards"][0]]
    missing = [name for name in names if f"`{name}`" not in TEXT and f".{name}`" not in TEXT]
    assert missing == []
