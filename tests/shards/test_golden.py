"""Frozen datasets of format version 1: every later version reads them to these values.

`golden/values.json` holds headers and rows in plain numbers; `golden/{captures,rows}` are the datasets of them.
`golden/compact` is the compact form of `golden/captures`, `golden/compact.json` what it reads to.
When the format changes, add a new golden folder; never rewrite these.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards import Capture, DatasetWriter, Header, Row, convert, open_dataset, plan_shards, verify

GOLDEN = Path(__file__).parent / "golden"
VALUES: dict[str, Any] = json.loads((GOLDEN / "values.json").read_text())
KINDS = ("captures", "rows")

DTYPES = {
    "input_ids": "i4", "segment_starts": "i4", "prompt_runs": "i4", "scored": "?", "document_ids": "i8",
    "continued": "?", "head_lengths": "u2", "head_ids": "i4", "head_logprobs": "f4", "rest_mass": "f4",
    "tail_lengths": "u2", "tail_ids": "i4", "tail_counts": "u2", "label_logprob": "f4", "label_rank": "u4",
    "entropy": "f4", "tail_logprobs": "f4", "logsumexp": "f4",
}  # fmt: skip


def plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON values."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def row_of(values: dict[str, Any]) -> Row:
    def typed(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.array(item, DTYPES[name]) if name in DTYPES and item is not None else item
            for name, item in fields.items()
            if name != "capture"
        }

    arguments = typed(values)
    arguments["prompt_runs"] = arguments["prompt_runs"].reshape(-1, 2)
    if values["capture"] is not None:
        capture = typed(values["capture"])
        capture["rest_mass"] = capture["rest_mass"].reshape(-1, 2)
        arguments["capture"] = Capture(**capture)
    return Row(**arguments)


def write(folder: Path, kind: str) -> None:
    rows = [row_of(values) for values in VALUES[kind]["rows"]]
    header = Header.from_json(VALUES[kind]["header"])
    writer = DatasetWriter(folder, header, plan_shards(len(rows), 3), rows_per_batch=2)
    for plan in writer.missing():
        writer.write(plan, rows[plan.first_row : plan.first_row + plan.num_rows])
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_golden_datasets_read_to_their_known_values(kind):
    dataset = open_dataset(GOLDEN / kind)
    assert dataset.header.to_json() == VALUES[kind]["header"]
    read = [plain(asdict(row)) for row in dataset.rows()]
    assert [row.pop("corpus_id") for row in read] == [0] * len(read)  # no column before `merge`
    for row in read if kind == "captures" else ():
        row["capture"]["dead_row_mass"] = 0.125  # no column; its mean is in the manifest
    assert read == VALUES[kind]["rows"]


def test_the_golden_manifest_has_its_known_figures():
    manifest = open_dataset(GOLDEN / "captures").manifest
    assert (manifest.num_tokens, manifest.num_scored, manifest.dead_row_mass) == (34, 17, 0.125)


def test_the_golden_compact_dataset_reads_to_its_known_values():
    known = json.loads((GOLDEN / "compact.json").read_text())
    dataset = open_dataset(GOLDEN / "compact")
    assert dataset.header.to_json() == known["header"]
    for row, expected in zip(dataset.rows(), map(row_of, known["rows"]), strict=True):
        read, wanted = (asdict(x.capture) | asdict(replace(x, capture=None)) for x in (row, expected))
        for name, value in wanted.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:  # exp and log differ between processors
                np.testing.assert_allclose(read[name], value, rtol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(read[name], value, err_msg=name)


def test_converting_the_golden_captures_gives_the_golden_compact_bytes(tmp_path):
    if pa.__version__ != VALUES["pyarrow"]:
        pytest.skip(f"byte identity holds for equal Arrow versions: {pa.__version__} here, {VALUES['pyarrow']} golden")
    convert(GOLDEN / "captures", tmp_path, "compact")
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    assert written == {path.name: path.read_bytes() for path in (GOLDEN / "compact").iterdir()}


@pytest.mark.parametrize("kind", [*KINDS, "compact"])
def test_golden_datasets_pass_verify(kind):
    assert verify(GOLDEN / kind).problems == []


@pytest.mark.parametrize("kind", KINDS)
def test_writing_the_golden_rows_gives_the_golden_bytes(kind, tmp_path):
    if pa.__version__ != VALUES["pyarrow"]:
        pytest.skip(f"byte identity holds for equal Arrow versions: {pa.__version__} here, {VALUES['pyarrow']} golden")
    write(tmp_path, kind)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (GOLDEN / kind).iterdir()}
