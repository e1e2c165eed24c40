"""Other programs read what is exported, and every value is the shards' own."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shards import ShardError, UserError, convert, open_dataset
from shards.distillkit import ABSENT, IGNORED, export_distillkit
from shards.export import export_hf, export_parquet


@pytest.fixture
def folder(build, tmp_path):
    header = build.make_header(12)
    return build.write_dataset(tmp_path / "train", header, [build.make_row(i, header) for i in range(12)])


def test_parquet_holds_every_column_with_the_shards_values(folder, tmp_path):
    lost = export_parquet({"train": folder}, tmp_path / "out")
    assert lost
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [f.name for f in files] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    shards = [pa.ipc.open_file(f).read_all() for f in sorted(folder.glob("*.arrow"))]
    for file, shard in zip(files, shards, strict=True):
        assert pq.read_table(file).to_pylist() == shard.to_pylist()
        assert pl.read_parquet(file)["head_ids"].to_list() == shard["head_ids"].to_pylist()
    text = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in shards[0].column_names)
    assert all(sentence in text for sentence in lost)


def test_a_compact_dataset_is_exported_most_likely_first(folder, tmp_path):
    convert(folder, tmp_path / "compact", "compact")
    export_parquet({"train": tmp_path / "compact"}, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    for row in pa.concat_tables(map(pq.read_table, files)).to_pylist():
        for values in np.split(np.array(row["head_logprobs"]), np.cumsum(row["head_lengths"])):
            assert (np.diff(values) <= 0).all()


def test_the_card_of_a_hugging_face_folder_names_splits_that_are_there(build, folder, tmp_path):
    header = build.make_header(2)
    build.write_dataset(tmp_path / "val", header, [build.make_row(i, header) for i in range(2)])
    export_hf({"train": folder, "val": tmp_path / "val"}, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.S)[1])
    splits = {one["split"]: one["path"] for one in front["configs"][0]["data_files"]}
    assert set(splits) == {"train", "validation"}
    rows = {
        name: sum(pq.read_table(f).num_rows for f in (tmp_path / "out").glob(path)) for name, path in splits.items()
    }
    assert rows == {"train": 12, "validation": 2}


def test_distillkits_layout_has_the_heads_at_their_positions(folder, tmp_path):
    lost = export_distillkit({"train": folder}, tmp_path / "out")
    dataset = open_dataset(folder)
    exported = pa.concat_tables([pq.read_table(tmp_path / "out" / f"data_{i}.parquet") for i in range(3)]).to_pylist()
    assert len(exported) == len(dataset)
    for row, out in zip(dataset.rows(), exported, strict=True):
        ids, values = np.array(out["token_ids"]), np.array(out["top_values"], np.float32)
        assert ids.shape == values.shape == (64, 6)
        assert sum(out["attention_mask"]) == row.num_tokens
        assert out["input_ids"][: row.num_tokens] == row.input_ids.tolist()
        heads = np.split(row.capture.head_ids, np.cumsum(row.capture.head_lengths))
        logprobs = np.split(row.capture.head_logprobs, np.cumsum(row.capture.head_lengths))
        for n, position in enumerate(row.scored_positions()):
            size = len(heads[n])
            assert ids[position, :size].tolist() == heads[n].tolist()
            assert values[position, :size].tolist() == logprobs[n].tolist()
            assert (values[position, size:] == ABSENT).all()
        for i, label in enumerate(out["labels"]):
            kept = 0 < i < row.num_tokens - 1 and bool(row.scored[i]) and bool(row.scored[i - 1])
            assert label == (row.input_ids[i] if kept else IGNORED)
    assert all(sentence in (tmp_path / "out" / "README.md").read_text() for sentence in lost)


def test_what_cannot_be_exported_is_refused(build, folder, tmp_path):
    header = build.make_header(1, kind="rows")
    build.write_dataset(tmp_path / "rows", header, [build.make_row(0, header)])
    with pytest.raises(ShardError, match="no captures"):
        export_distillkit({"train": tmp_path / "rows"}, tmp_path / "out")
    with pytest.raises(ShardError, match="one split a folder"):
        export_distillkit({"a": folder, "b": folder}, tmp_path / "out")
    (tmp_path / "out").mkdir()
    for export in (export_parquet, export_hf, export_distillkit):
        with pytest.raises(UserError, match="exists already"):
            export({"train": folder}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
