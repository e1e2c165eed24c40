"""Datasets for other programs: Parquet with the logical columns, and a Hugging Face dataset folder of such files.

Nothing of a row is lost; the shards' hashes and random access are. Outputs appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .columns import rows_to_batch
from .files import appears_whole
from .header import Header
from .manifest import ShardEntry
from .reader import Dataset, open_dataset
from .rows import Row
from .schema import arrow_schema

Progress = Callable[[int, int], None]
"""Gets (shards done, shards in all)."""
_ROWS_AT_ONCE = 64
_SPLIT_NAMES = {"val": "validation"}


def export_parquet(sources: Mapping[str, Path], out: Path, progress: Progress | None = None) -> list[str]:
    """`out/<name>-00000-of-00007.parquet`, one file a shard, and a README.md. Returns what is lost, as sentences."""
    datasets = {name: open_dataset(source) for name, source in sources.items()}
    with appears_whole(out) as folder:
        files = _write_all(datasets, folder, progress)
        readme = f"# Captures as Parquet\n\n{_lost_text()}\n{_describe(datasets)}\n"
        (folder / "README.md").write_text(readme + _usage(files[0]), encoding="utf-8")
    return LOST


def export_hf(sources: Mapping[str, Path], out: Path, progress: Progress | None = None) -> list[str]:
    """A folder that `datasets.load_dataset(folder)` reads: data/*.parquet, and a card that names the splits."""
    datasets = {_SPLIT_NAMES.get(name, name): open_dataset(source) for name, source in sources.items()}
    with appears_whole(out) as folder:
        (folder / "data").mkdir()
        _write_all(datasets, folder / "data", progress)
        splits = "".join(f"  - split: {name}\n    path: data/{name}-*.parquet\n" for name in datasets)
        front = f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
        first = next(iter(datasets))
        call = f'rows = load_dataset("FOLDER", split="{first}")'
        load = f"## Load\n\n```python\nfrom datasets import load_dataset\n\n{call}\n```\n"
        body = f"\n# Teacher captures\n\n{_lost_text()}\n{_describe(datasets)}\n{load}"
        (folder / "README.md").write_text(front + body, encoding="utf-8")
    return LOST


LOST = [
    "the shards' sha256 and the manifest: damage is no longer found by verify",
    "random access by row: a Parquet file is decoded by row groups",
]
"""What Parquet cannot keep of a dataset."""


def split_name(dataset: Dataset) -> str:
    """The dataset's split, made fit for a file name."""
    name = str(dataset.header.extra.get("split") or dataset.folder.name)
    return "".join(c for c in name if c.isalnum() or c == "_") or "train"


def shard_rows(dataset: Dataset, entry: ShardEntry) -> Iterator[list[Row]]:
    """The rows of one shard, some at a time."""
    rows = dataset.rows(entry.first_row, entry.first_row + entry.num_rows)
    while block := list(islice(rows, _ROWS_AT_ONCE)):
        yield block


def _write_all(datasets: Mapping[str, Dataset], folder: Path, progress: Progress | None) -> list[str]:
    total = sum(len(dataset.manifest.shards) for dataset in datasets.values())
    files: list[str] = []
    for name, dataset in datasets.items():
        count = len(dataset.manifest.shards)
        for number, entry in enumerate(dataset.manifest.shards):
            files.append(f"{name}-{number:05d}-of-{count:05d}.parquet")
            _write_file(dataset, entry, folder / files[-1])
            if progress is not None:
                progress(len(files), total)
    return files


def _write_file(dataset: Dataset, entry: ShardEntry, path: Path) -> None:
    header = dataset.header.with_encoding("plain")
    schema = arrow_schema(header, entry.plan, dataset.manifest.rows_per_batch)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in shard_rows(dataset, entry):
            writer.write_batch(rows_to_batch(block, header, schema))


def _describe(datasets: Mapping[str, Dataset]) -> str:
    lines = [
        f"- `{name}`: {len(d):,} rows, {d.num_tokens:,} tokens, {d.num_scored:,} scored positions"
        for name, d in datasets.items()
    ]
    header = next(iter(datasets.values())).header
    shown = json.dumps(_settings(header), indent=1, ensure_ascii=False)
    schema = arrow_schema(header.with_encoding("plain"), next(iter(datasets.values())).manifest.shards[0].plan, 1)
    columns = "\n".join(f"- `{f.name}` ({f.type}): {f.metadata[b'doc'].decode()}" for f in schema)
    about = schema.metadata[b"about"].decode()
    return "\n".join(
        [
            "## Content",
            "",
            *lines,
            "",
            "## Settings",
            "",
            f"```json\n{shown}\n```",
            "",
            "## Columns",
            "",
            about,
            "",
            columns,
            "",
        ]
    )


def _settings(header: Header) -> dict[str, Any]:
    return {name: value for name, value in header.to_json().items() if name not in ("num_rows", "extra")}


def _lost_text() -> str:
    return "Made by `minicodformer shards export`. Not kept:\n\n" + "".join(f"- {text}\n" for text in LOST)


def _usage(file: str) -> str:
    reads = [
        f'pandas.read_parquet("{file}")',
        f'polars.read_parquet("{file}")',
        f"duckdb.sql(\"select row_id, len(input_ids) from '{file}'\")",
    ]
    return "## Read\n\n```python\n" + "\n".join(reads) + "\n```\n"
