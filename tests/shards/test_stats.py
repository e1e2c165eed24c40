"""The figures against slow, plain definitions, and the bytes of columns against the file."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shards import convert, open_dataset
from shards.sizes import OVERHEAD, column_bytes
from shards.stats import stats


@pytest.fixture
def folder(build, tmp_path):
    header = build.make_header(21, head_size=6, head_mass=1.0)
    return build.write_dataset(tmp_path / "d", header, [build.make_row(i, header) for i in range(21)])


def slow(folder):
    masses, ranks, rests, draws, inside = [], [], [], [], []
    for row in open_dataset(folder).rows():
        c, head, tail = row.capture, 0, 0
        for n, label in enumerate(row.labels().tolist()):
            ids = c.head_ids[head : head + c.head_lengths[n]].tolist()
            values = sorted(np.exp(c.head_logprobs[head : head + c.head_lengths[n]].astype(float)), reverse=True)
            masses.append([sum(values[:k]) for k in (1, 2, 4, 6)])
            inside.append(label in ids)
            draws.append(sum(c.tail_counts[tail : tail + c.tail_lengths[n]].tolist()))
            ranks.append(int(c.label_rank[n]))
            rests.append(float(c.rest_mass[n, 0]))
            head, tail = head + int(c.head_lengths[n]), tail + int(c.tail_lengths[n])
    return masses, ranks, rests, draws, inside


@pytest.mark.parametrize("encoding", ["plain", "compact"])
def test_the_figures_are_those_of_the_plain_definitions(folder, tmp_path, encoding):
    if encoding == "compact":
        convert(folder, tmp_path / "c", "compact")
        folder = tmp_path / "c"
    masses, ranks, rests, draws, inside = slow(folder)
    found = stats(folder)
    assert list(found["mass_kept"]) == ["1", "2", "4", "6"]
    assert list(found["mass_kept"].values()) == pytest.approx(np.mean(masses, axis=0).tolist())
    assert found["draws"]["mean"] == pytest.approx(np.mean(draws))
    assert found["label"]["in_head"] == pytest.approx(np.mean(inside))
    assert found["rest_mass"]["mean"] == pytest.approx(np.mean(rests))
    assert found["rest_mass"]["median"] == pytest.approx(np.quantile(rests, 0.5, method="inverted_cdf"), abs=2e-5)
    assert found["rest_mass"]["p90"] == pytest.approx(np.quantile(rests, 0.9, method="inverted_cdf"), abs=2e-5)
    for one in found["label"]["ranks"]:
        assert one["share"] == pytest.approx(np.mean([one["from"] <= rank <= one["to"] for rank in ranks]))
    assert math.isclose(sum(one["share"] for one in found["label"]["ranks"]), 1.0)
    sources = found["sources"]
    assert set(sources) == {"novels", "facts"}
    assert sum(one["tokens"] for one in sources.values()) == found["tokens"] == open_dataset(folder).num_tokens


@pytest.mark.parametrize("encoding", ["plain", "compact"])
def test_the_bytes_of_the_columns_sum_to_the_file(folder, tmp_path, encoding):
    if encoding == "compact":
        convert(folder, tmp_path / "c", "compact")
        folder = tmp_path / "c"
    for file in folder.glob("*.arrow"):
        sizes = column_bytes(file)
        assert sum(sizes.values()) == file.stat().st_size
        assert all(size >= 0 for size in sizes.values())
        assert 0 < sizes[OVERHEAD] < file.stat().st_size
    total = sum(file.stat().st_size for file in folder.glob("*.arrow"))
    assert stats(folder)["bytes"]["total"] == total


def test_uncompressed_columns_have_the_sizes_of_their_arrays(tmp_path):
    import pyarrow as pa

    table = pa.table({"a": pa.array(range(100), pa.int64()), "b": pa.array([[1, 2]] * 100, pa.list_(pa.int32()))})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=60)
    sizes = column_bytes(tmp_path / "x.arrow")
    assert sizes["a"] == 800
    assert sizes["b"] == 200 * 4 + (61 + 41) * 4


def test_some_rows_stand_for_all_and_a_corpus_has_counts_only(build, folder, tmp_path):
    assert stats(folder, rows=4)["rows_looked_at"] == 4
    header = build.make_header(3, kind="rows")
    build.write_dataset(tmp_path / "rows", header, [build.make_row(i, header) for i in range(3)])
    found = stats(tmp_path / "rows")
    assert found["rows"] == 3
    assert "mass_kept" not in found
