"""Bytes per scored position by column, plain against compact; codec speed; what the codes cost in KL.

    python benchmarks/shard_bytes.py dumps/quickstart/shards/train --out benchmarks/results/<date>-shard-bytes-cpu.md

Takes a finished plain dump. A column's size is that of its buffers, compressed as Arrow compresses them; metadata is
what the files have besides. Speeds: positions a CPU-second on one
core, best of three passes; waiting for the disk or for other programs does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import Capture, DatasetWriter, Header, Row, open_dataset, plan_shards
from shards.columns import rows_to_batch
from shards.compact import plane_sizes
from shards.schema import arrow_schema

TARGET = (
    "head_lengths", "head_ids", "head_logprobs", "head_values", "id_order", "rest_mass",
    "tail_lengths", "tail_ids", "tail_counts", "tail_logprobs",
)  # fmt: skip
"""Columns of head, tail and rest: the training target."""
QWEN_VOCABULARY, STRETCH = 151_669, 3


@dataclass(frozen=True)
class Measured:
    """One way to store the rows."""

    title: str
    positions: int
    sizes: dict[str, int]
    """Bytes by logical column."""
    write: float
    """Positions a CPU-second."""
    read: float
    read_any: float
    """With `order="any"`."""

    def share(self, columns: Sequence[str]) -> float:
        return sum(self.sizes.get(column, 0) for column in columns) / self.positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    text = "\n".join(report(arguments.dump)) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(dump: Path) -> Iterator[str]:
    dataset = open_dataset(dump)
    header, rows, n = dataset.header, list(dataset.rows()), dataset.num_scored
    heads, tails = (sum(len(getattr(r.capture, c)) for r in rows) / n for c in ("head_ids", "tail_ids"))
    rest = np.concatenate([r.capture.rest_mass[:, 0] for r in rows]).mean()
    yield f"# Shard bytes, {datetime.now(UTC):%Y-%m-%d}, CPU"
    yield ""
    yield f"`python benchmarks/shard_bytes.py {dump}`, one core of {processor()}; numpy {np.__version__},"
    yield f"pyarrow {pa.__version__}, zstd level 1. {n:,} scored positions, vocabulary {header.vocab_size:,};"
    yield f"head at most {header.head_size} ids to mass {header.head_mass}, tail {header.tail}:"
    yield f"{heads:.2f} head ids and {tails:.2f} distinct tail ids a position,"
    yield f"mean rest mass {rest:.3f}, {len(header.temperatures)} temperatures."
    yield "Columns `*` are head, tail and rest."
    yield ""
    per_shard = dataset.manifest.shards[0].num_rows
    with tempfile.TemporaryDirectory() as folder:
        real = [
            measure(
                Path(folder) / encoding / title, f"{encoding}, {title}", replace(header, encoding=encoding), rows, *cut
            )
            for encoding in ("plain", "compact")
            for title, cut in {
                f"{per_shard} rows a shard": (per_shard, None),
                "one shard": (len(rows), None),
                "one shard, one batch": (len(rows), len(rows)),
            }.items()
        ]
        yield "## Bytes per scored position"
        yield ""
        yield from size_table(real)
        yield ""
        yield f"## The same with ids times {STRETCH}, in Qwen3's vocabulary of {QWEN_VOCABULARY:,} (three planes)"
        yield ""
        wide = [stretched(row) for row in rows]
        qwen = replace(header, vocab_size=QWEN_VOCABULARY, vocab_rows=QWEN_VOCABULARY)
        yield from size_table(
            [
                measure(Path(folder) / "q" / e, f"{e}, one shard", replace(qwen, encoding=e), wide, len(rows), None)
                for e in ("plain", "compact")
            ]
        )
        yield ""
        yield "## Speed, thousand scored positions a CPU-second"
        yield ""
        made_up, fixed = fixed_heads(64)
        yield from speed_table(
            real
            + [
                measure(
                    Path(folder) / "k64" / e, f"{e}, K = 64, made up", replace(made_up, encoding=e), fixed, 64, None
                )
                for e in ("plain", "compact")
            ]
        )
        yield ""
        yield "## What the codes cost"
        yield ""
        yield from fidelity(rows, list(open_dataset(Path(folder) / "compact" / "one shard").rows()))


def measure(
    folder: Path, title: str, header: Header, rows: list[Row], rows_per_shard: int, rows_per_batch: int | None
) -> Measured:
    n = sum(row.num_scored for row in rows)
    seconds = defaultdict(list)
    for attempt in range(3):
        place = folder if attempt == 0 else folder.with_name(f"{folder.name} {attempt}")
        start = time.process_time()
        writer = DatasetWriter(place, header, plan_shards(len(rows), rows_per_shard), rows_per_batch)
        for plan in writer.missing():
            writer.write(plan, rows[plan.first_row : plan.first_row + plan.num_rows])
        manifest = writer.close()
        seconds["write"].append(time.process_time() - start)
        for order in ("rank", "any"):
            start = time.process_time()
            for _ in open_dataset(place, order=order).rows():
                pass
            seconds[order].append(time.process_time() - start)
    sizes = column_bytes(header, rows, rows_per_shard, manifest.rows_per_batch)
    sizes["metadata"] = sum(shard.bytes for shard in manifest.shards) - sum(sizes.values())
    return Measured(title, n, sizes, *(n / min(seconds[what]) for what in ("write", "rank", "any")))


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
                buffers = [b for b in column.buffers() if b is not None and b.size]
                sizes[owner] += sum(len(codec.compress(b, asbytes=True)) for b in buffers)
    return dict(sizes)


def size_table(measured: list[Measured]) -> Iterator[str]:
    every = {column for m in measured for column in m.sizes}
    ordered = sorted(every, key=lambda c: (c not in TARGET, c == "metadata", c))
    yield "| | " + " | ".join(m.title for m in measured) + " |"
    yield "| --- |" + " --- |" * len(measured)
    for column in ordered:
        cells = (f"{m.share([column]):.2f}" if column in m.sizes else "-" for m in measured)
        yield f"| {column}{' *' if column in TARGET else ''} | " + " | ".join(cells) + " |"
    others = [column for column in ordered if column not in TARGET]
    for title, wanted in (("head, tail, rest", TARGET), ("everything else", others), ("whole files", ordered)):
        yield f"| **{title}** | " + " | ".join(f"**{m.share(wanted):.2f}**" for m in measured) + " |"


def speed_table(measured: list[Measured]) -> Iterator[str]:
    yield "| | bytes a position | encode and write | read in rank order | read in any order |"
    yield "| --- | --- | --- | --- | --- |"
    for m in measured:
        speeds = (f"{speed / 1e3:,.0f}" for speed in (m.write, m.read, m.read_any))
        yield f"| {m.title} | {m.share(list(m.sizes)):.1f} | " + " | ".join(speeds) + " |"


def stretched(row: Row) -> Row:
    """Every id times `STRETCH`: an injection that keeps their order."""
    ids = {name: getattr(row.capture, name) * np.int32(STRETCH) for name in ("head_ids", "tail_ids")}
    ranks = row.capture.label_rank * np.uint32(STRETCH)
    capture = replace(row.capture, **ids, label_rank=ranks)
    return replace(row, input_ids=row.input_ids * np.int32(STRETCH), capture=capture)


def fixed_heads(size: int) -> tuple[Header, list[Row]]:
    """64 rows of 257 tokens with heads of exactly `size` ids from a skewed distribution, no draws."""
    rng = np.random.default_rng(0)
    vocab, n, rows = 49_152, 256, []
    for row_id in range(64):
        candidates = np.minimum(vocab * rng.random((n, 8 * size)) ** 3, vocab - 1).astype(np.int32)
        ids = np.concatenate([rng.permutation(np.unique(line))[:size] for line in candidates])
        rest = 0.3 * rng.random((n, 1))
        logprobs = -np.sort(rng.gamma(2.0, 2.0, (n, size)))
        logprobs += np.log1p(-rest) - np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
        none = np.zeros(n, np.uint16)
        flat, label = logprobs.reshape(-1).astype(np.float32), logprobs[:, 0].astype(np.float32)
        capture = Capture(
            np.full(n, size, np.uint16), ids, flat, np.repeat(rest, 2, axis=1).astype(np.float32), none,
            ids[:0], none[:0], label, np.zeros(n, np.uint32), np.ones(n, np.float32),
        )  # fmt: skip
        tokens = rng.integers(0, vocab, n + 1).astype(np.int32)
        starts, runs, scored = np.zeros(1, np.int32), np.zeros((0, 2), np.int32), np.ones(n, np.bool_)
        rows.append(Row(row_id, tokens, starts, runs, scored, capture=capture))
    header = Header(
        kind="captures", num_rows=len(rows), vocab_size=vocab, vocab_rows=vocab, max_length=n + 1, head_size=size,
        temperatures=(1.0, 2.0),
    )  # fmt: skip
    return header, rows


def fidelity(plain: list[Row], coded: list[Row]) -> Iterator[str]:
    """KL of the compact from the plain target (tail ids and counts are equal, so the rest counts as one event)."""
    divergences, logprob, rest, label = [], 0.0, 0.0, 0.0
    for a, b in ((x.capture, y.capture) for x, y in zip(plain, coded, strict=True)):
        (ids, x), (same, y) = by_id(a), by_id(b)
        assert np.array_equal(ids, same)
        assert np.array_equal(a.tail_ids, b.tail_ids)
        assert np.array_equal(a.tail_counts, b.tail_counts)
        r, s = (np.maximum(c.rest_mass[:, 0].astype(float), 1e-300) for c in (a, b))
        owner = np.repeat(np.arange(len(r)), a.head_lengths)
        p, q = (
            np.exp(v) * ((1 - rests) / np.bincount(owner, np.exp(v), len(r)))[owner] for v, rests in ((x, r), (y, s))
        )
        divergences.append(np.bincount(owner, p * np.log(p / q), len(r)) + r * np.log(r / s))
        logprob = max(logprob, np.abs(x - y).max())
        rest = max(rest, np.abs(r - s).max())
        label = max(label, np.abs(a.label_logprob - b.label_logprob).max())
    kl = np.concatenate(divergences)
    yield f"KL of the compact from the plain target: mean {kl.mean():.2e}, p99 {np.percentile(kl, 99):.2e}, largest"
    yield f"{kl.max():.2e} nats. Largest differences: head log-probability {logprob:.4f} nats (bound 0.0703), rest mass"
    yield f"{rest:.4f} (bound 0.0020), label log-probability {label:.4f} nats (bound 0.0020)."
    yield "Ids, tail counts, ranks and all columns of the corpus are lossless."


def by_id(capture: Capture) -> tuple[np.ndarray, np.ndarray]:
    """Head ids, rising inside a position, and their log-probabilities as float64."""
    owner = np.repeat(np.arange(len(capture.head_lengths)), capture.head_lengths)
    order = np.lexsort((capture.head_ids, owner))
    return capture.head_ids[order], capture.head_logprobs[order].astype(float)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "an unnamed processor")


if __name__ == "__main__":
    main()
