"""One lost file explains itself, and plain Arrow tools open it."""

from __future__ import annotations

import json
import subprocess
import sys

import polars as pl
import pyarrow as pa
import pytest

import shards
from shards import ShardPlan
from shards.schema import arrow_schema, schema_difference


@pytest.fixture
def file(build, tmp_path):
    header = build.make_header(5)
    build.write_dataset(tmp_path, header, [build.make_row(i, header, length=20) for i in range(5)])
    return tmp_path / "shard-00000.arrow"


def test_a_lost_file_names_its_teacher_settings_and_every_column(file):
    schema = pa.ipc.open_file(file).schema
    header = json.loads(schema.metadata[b"header"])
    assert header["fingerprints"]["teacher"] == {"weights": "aa"}
    assert (header["head_size"], header["head_mass"], header["tail"]) == (6, 0.9, {"draws_per_mass": 16.0})
    assert json.loads(schema.metadata[b"shard"]) == {"index": 0, "first_row": 0, "num_rows": 5, "rows_per_batch": 2}
    assert b"q(id) = (1 - rest) * softmax(head_logprobs)(id)" in schema.metadata[b"about"]
    assert all(len(field.metadata[b"doc"]) > 15 for field in schema)


def test_polars_and_pyarrow_read_the_same_values(file):
    table = pa.ipc.open_file(file).read_all()
    frame = pl.read_ipc(file)
    assert frame.columns == table.column_names
    for name in ("input_ids", "scored", "prompt_runs", "head_ids", "head_logprobs", "tail_counts", "source"):
        assert frame[name].to_list() == table[name].to_pylist(), name


def test_schema_differences_are_told_in_words(build):
    header, plan = build.make_header(5), ShardPlan(0, 0, 5)
    ours = arrow_schema(header, plan, 2)
    assert schema_difference(ours, ours) is None
    other = arrow_schema(build.make_header(5, seed=9), plan, 2)
    assert schema_difference(other, ours) == "it was written with other settings (seed: 9 against 0)"
    assert "it is another shard" in schema_difference(arrow_schema(header, ShardPlan(1, 0, 5), 2), ours)
    assert schema_difference(pa.schema([]), ours) == "it is not a shard of this format"
    newer = ours.with_metadata(ours.metadata | {b"format_version": b"7"})
    assert schema_difference(newer, ours) == "its format version is 7, not 1"
    assert "its columns are" in schema_difference(ours.remove(3), ours)


def test_public_names_are_pinned():
    assert shards.__all__ == [
        "FORMAT_VERSION", "Capture", "Dataset", "DatasetWriter", "Header", "Layout", "Manifest", "Probe", "Report",
        "Row", "ShardError", "ShardPlan", "UserError", "block_order", "convert", "epoch_order", "is_whole",
        "open_dataset", "plan_shards", "rank_slice", "read_probe", "step_rows", "steps_per_epoch", "verify",
        "write_probe",
    ]  # fmt: skip


def test_importing_the_format_loads_no_tensor_library():
    code = "import sys, shards, shards.inspect; print({'torch', 'transformers', 'deepspeed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
