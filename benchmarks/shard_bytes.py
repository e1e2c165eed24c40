"""Bytes per scored position by column, plain against compact; codec speed; what the codes cost in KL.

    python benchmarks/shard_bytes.py dumps/quickstart/shards/train [--out benchmarks/results/....md]

Takes a finished plain dump. Sizes are of the files; a column's share is its share of the batches' compressed buffers,
metadata is the rest. One core, best of three passes for speeds; an operating system's file cache is warm.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import Capture, DatasetWriter, Row, open_dataset, plan_shards
from shards.columns import rows_to_batch
from shards.compact import plane_sizes
from shards.header import Header
from shards.schema import arrow_schema

TARGET = ("head_lengths", "head_ids", "head_logprobs", "head_values", "id_order", "rest_mass")
TARGET += ("tail_lengths", "tail_ids", "tail_counts", "tail_logprobs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    dataset = open_dataset(arguments.dump)
    rows = list(dataset.rows())
    text = "\n".join(report(dataset.header, rows, arguments.dump, dataset.manifest.shards[0].num_rows))
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def report(header: Header, rows: list[Row], place: Path, rows_per_shard: int):
    n = sum(row.num_scored for row in rows)
    heads, tails = (sum(len(getattr(r.capture, c)) for r in rows) / n for c in ("head_ids", "tail_ids"))
    rest = np.concatenate([r.capture.rest_mass[:, 0] for r in rows]).mean()
    yield f"# Shard bytes, {datetime.now(UTC):%Y-%m-%d}, CPU"
    yield ""
    yield f"`python benchmarks/shard_bytes.py {place}` on one core of: {processor()}; numpy {np.__version__}, pyarrow {pa.__version__}."
    yield f"{n:,} scored positions, vocabulary {header.vocab_size:,}, head at most {header.head_size} to mass {header.head_mass}, tail {header.tail}:"
    yield f"{heads:.2f} head ids and {tails:.2f} distinct tail ids a position, mean rest mass {rest:.3f}."
    yield ""
    layouts = {
        f"as dumped ({rows_per_shard} rows a shard)": (rows_per_shard, None),
        "one shard, default batches": (len(rows), None),
        "one shard, one batch": (len(rows), len(rows)),
    }
    sizes, speeds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ("plain", "compact"):
            for name, (shard, batch) in layouts.items():
                key = (encoding, name)
                sizes[key], speeds[key] = measure(
                    Path(folder) / encoding / str(len(sizes)), replace(header, encoding=encoding), rows, shard, batch
                )
        coded = list(open_dataset(Path(folder) / "compact" / "4").rows())
    yield "## Bytes per scored position"
    yield ""
    yield "| | " + " | ".join(f"{e}, {name}" for e, name in sizes) + " |"
    yield "| --- |" + " --- |" * len(sizes)
    names = sorted({c for s in sizes.values() for c in s}, key=lambda c: (c not in TARGET, c == "metadata"))
    for column in names:
        yield (
            f"| {column} | " + " | ".join(f"{s[column] / n:.2f}" if column in s else "-" for s in sizes.values()) + " |"
        )
    for title, wanted in (("**head, tail, rest**", True), ("**everything else**", False)):
        totals = [sum(size for column, size in s.items() if (column in TARGET) == wanted) / n for s in sizes.values()]
        yield f"| {title} | " + " | ".join(f"**{total:.2f}**" for total in totals) + " |"
    yield "| **whole files** | " + " | ".join(f"**{sum(s.values()) / n:.2f}**" for s in sizes.values()) + " |"
    yield ""
    yield "## Speed, thousand scored positions a second"
    yield ""
    yield "| | encode and write | read to rows |"
    yield "| --- | --- | --- |"
    for (encoding, name), (write, read) in speeds.items():
        yield f"| {encoding}, {name} | {write / 1e3:.0f} | {read / 1e3:.0f} |"
    yield ""
    yield "## What the codes cost"
    yield ""
    yield from fidelity(rows, coded)


def measure(folder: Path, header: Header, rows: list[Row], rows_per_shard: int, rows_per_batch: int | None):
    """Bytes by column and (write, read) positions a second."""
    n = sum(row.num_scored for row in rows)
    writes, reads = [], []
    for attempt in range(3):
        place = folder if attempt == 0 else folder.with_name(f"{folder.name}-{attempt}")
        start = time.perf_counter()
        writer = DatasetWriter(place, header, plan_shards(len(rows), rows_per_shard), rows_per_batch)
        for plan in writer.missing():
            writer.write(plan, rows[plan.first_row : plan.first_row + plan.num_rows])
        manifest = writer.close()
        writes.append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in open_dataset(place).rows():
            pass
        reads.append(n / (time.perf_counter() - start))
    sizes = column_bytes(header, rows, rows_per_shard, manifest.rows_per_batch)
    sizes["metadata"] = sum(shard.bytes for shard in manifest.shards) - sum(sizes.values())
    return sizes, (max(writes), max(reads))


def column_bytes(header: Header, rows: list[Row], rows_per_shard: int, rows_per_batch: int) -> dict[str, int]:
    """Compressed bytes of every logical column's buffers."""
    codec = pa.Codec("zstd", compression_level=1)
    sizes: dict[str, int] = defaultdict(int)
    planes = plane_sizes(header)
    for plan in plan_shards(len(rows), rows_per_shard):
        schema = arrow_schema(header, plan, rows_per_batch)
        mine = rows[plan.first_row : plan.first_row + plan.num_rows]
        for first in range(0, len(mine), rows_per_batch):
            batch = rows_to_batch(mine[first : first + rows_per_batch], header, schema)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                stem = name.rpartition("_")[0]
                owner = stem if header.encoding == "compact" and stem in planes else name
                sizes[owner] += sum(
                    len(codec.compress(b, asbytes=True)) for b in column.buffers() if b is not None and b.size
                )
    return dict(sizes)


def fidelity(plain: list[Row], coded: list[Row]):
    """KL(plain target || compact target) over head ids and the rest as a bucket, and the largest differences."""
    kl, logprob, rest, label = [], 0.0, 0.0, 0.0
    for a, b in zip(plain, coded, strict=True):
        p, q = by_id(a.capture), by_id(b.capture)
        assert np.array_equal(p[0], q[0])
        assert np.array_equal(a.capture.tail_ids, b.capture.tail_ids)
        assert np.array_equal(a.capture.tail_counts, b.capture.tail_counts)
        r, s = (x.capture.rest_mass[:, 0].astype(float) for x in (a, b))
        lengths = a.capture.head_lengths.astype(np.int64)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        P, Q = (np.exp(x[1].astype(float)) for x in (p, q))
        P *= ((1 - r) / np.bincount(owner, P, len(lengths)))[owner]
        kl.append(
            np.bincount(owner, P * np.log(P / Q), len(lengths))
            + r * np.log(np.maximum(r, 1e-300) / np.maximum(s, 1e-300))
        )
        logprob = max(logprob, np.abs(p[1] - q[1]).max())
        rest = max(rest, np.abs(r - s).max())
        label = max(label, np.abs(a.capture.label_logprob - b.capture.label_logprob).max())
    values = np.concatenate(kl)
    yield f"KL of the compact from the plain target, nats: mean {values.mean():.2e}, p99 {np.percentile(values, 99):.2e}, largest {values.max():.2e}."
    yield f"Largest difference: head log-probability {logprob:.4f} nats, rest mass {rest:.4f}, label log-probability {label:.4f} nats."
    yield "Ids, tail counts, label ranks and everything of the corpus are lossless."


def by_id(capture: Capture):
    owner = np.repeat(np.arange(len(capture.head_lengths)), capture.head_lengths)
    order = np.lexsort((capture.head_ids, owner))
    return capture.head_ids[order], capture.head_logprobs[order]


def processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
