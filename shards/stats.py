"""Figures of a dataset: what heads keep, how draws and masses lie, where the bytes go. Printing is elsewhere.

One pass over the rows, in bounded memory: quantiles come from histograms of 2**16 bins and are exact to one bin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks.flat import entries
from .header import Header
from .reader import Dataset, open_dataset
from .rows import Capture, Row
from .sizes import column_bytes

_BINS = 2**16
_ROWS_AT_ONCE = 256
Floats = NDArray[np.float64]


@dataclass
class Spread:
    """Mean and quantiles of numbers in [0, high]."""

    high: float
    count: int = 0
    total: float = 0.0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: Floats) -> None:
        self.count += len(values)
        self.total += float(values.sum())
        place = np.clip(values / self.high * _BINS, 0, _BINS - 1).astype(np.int64)
        self.bins += np.bincount(place, minlength=_BINS)

    def quantile(self, share: float) -> float:
        """Middle of the bin in which the quantile lies."""
        at = int(np.searchsorted(np.cumsum(self.bins), share * self.count))
        return (min(at, _BINS - 1) + 0.5) / _BINS * self.high

    def to_json(self) -> dict[str, float] | None:
        if not self.count:
            return None
        quantiles = {"median": self.quantile(0.5), "p90": self.quantile(0.9), "p99": self.quantile(0.99)}
        return {"mean": self.total / self.count} | quantiles


@dataclass
class _Captures:
    """Sums over the scored positions seen so far."""

    header: Header
    positions: int = 0
    head_entries: int = 0
    draws: int = 0
    tail_entries: int = 0
    drawn_positions: int = 0
    labels_in_head: int = 0
    label_nats: float = 0.0
    kept: Floats = field(init=False)  # [levels] sums of the mass of the first K ids
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(33, np.int64))
    rest: Spread = field(init=False)
    entropy: Spread = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.zeros(len(levels(self.header)))
        self.rest = Spread(1.0)
        self.entropy = Spread(float(np.log(self.header.vocab_size)))

    def add(self, rows: Sequence[Row]) -> None:
        captures = [row.capture for row in rows if row.capture is not None and row.num_scored]
        if not captures:
            return
        flat = _flat(captures)
        head, n = entries(flat("head_lengths")), len(flat("head_lengths"))
        logprobs = flat("head_logprobs").astype(np.float64)
        mass = np.exp(logprobs[np.lexsort((-logprobs, head.owner))])  # heads come as stored
        self.kept += [mass[head.place < k].sum() for k in levels(self.header)]
        self.positions += n
        self.head_entries += len(mass)
        self.draws += int(flat("tail_counts").sum(dtype=np.int64))
        self.tail_entries += len(flat("tail_ids"))
        self.drawn_positions += int((flat("tail_lengths") > 0).sum())
        labels = np.concatenate([row.labels() for row in rows if row.num_scored])
        self.labels_in_head += int(head.any(flat("head_ids") == labels[head.owner]).sum())
        self.label_nats -= float(flat("label_logprob").sum(dtype=np.float64))
        places = np.frexp(flat("label_rank").astype(np.float64))[1]  # 0 | 1 | 2-3 | 4-7 | ...
        self.ranks += np.bincount(places, minlength=33)
        self.rest.add(np.concatenate([c.rest_mass[:, 0] for c in captures]).astype(np.float64))
        self.entropy.add(flat("entropy").astype(np.float64))

    def to_json(self) -> dict[str, Any]:
        n = max(1, self.positions)
        cross_entropy = self.label_nats / n
        bounds = [(0, 0), *((2**k, 2 ** (k + 1) - 1) for k in range(32))]
        last = int(np.flatnonzero(self.ranks).max(initial=0))
        return {
            "mass_kept": dict(zip(map(str, levels(self.header)), (self.kept / n).tolist(), strict=True)),
            "head_length": self.head_entries / n,
            "draws": {
                "mean": self.draws / n,
                "distinct": self.tail_entries / n,
                "positions_with_draws": self.drawn_positions / n,
            },
            "rest_mass": self.rest.to_json(),
            "entropy": self.entropy.to_json(),
            "label": {
                "in_head": self.labels_in_head / n,
                "cross_entropy": cross_entropy,
                "perplexity": float(np.exp(min(cross_entropy, 700.0))),
                "ranks": [
                    {"from": low, "to": high, "share": int(count) / n}
                    for (low, high), count in zip(bounds[: last + 1], self.ranks, strict=False)
                ],
            },
        }


def stats(folder: Path, rows: int | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """JSON values: counts, bytes by column, by source, and for captures what the teacher said.

    `rows`: look at this many rows only, spread evenly over the dataset (bytes are always of the whole dataset).

    Raises:
        ShardError: no whole dataset there.
    """
    dataset = open_dataset(folder, order="any")
    chosen = _spread_rows(len(dataset), rows)
    sources: dict[str, dict[str, int]] = {}
    captures = _Captures(dataset.header)
    seen = 0
    for block in _blocks(dataset, chosen):
        for row in block:
            counts = sources.setdefault(row.source, {"rows": 0, "tokens": 0, "scored": 0})
            counts["rows"] += 1
            counts["tokens"] += row.num_tokens
            counts["scored"] += row.num_scored
        captures.add(block)
        seen += len(block)
        if progress is not None:
            progress(seen, len(chosen))
    found = {
        "folder": str(folder),
        "kind": dataset.header.kind,
        "encoding": dataset.header.encoding,
        "rows": len(dataset),
        "tokens": dataset.num_tokens,
        "scored": dataset.num_scored,
        "rows_looked_at": len(chosen),
        "bytes": _bytes(dataset),
        "sources": dict(sorted(sources.items())),
    }
    return found | (captures.to_json() if dataset.header.kind == "captures" else {})


def levels(header: Header) -> list[int]:
    """1, 2, 4, ... and last the largest head that there may be."""
    most = max(1, header.head_size + len(header.must_keep))
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def _flat(captures: Sequence[Capture]) -> Callable[[str], NDArray[Any]]:
    return lambda name: np.concatenate([getattr(capture, name) for capture in captures])


def _spread_rows(num_rows: int, wanted: int | None) -> list[int]:
    if wanted is None or wanted >= num_rows:
        return list(range(num_rows))
    return [i * num_rows // wanted for i in range(wanted)]


def _blocks(dataset: Dataset, chosen: Sequence[int]) -> Iterator[list[Row]]:
    remaining = iter(chosen)
    while indices := list(islice(remaining, _ROWS_AT_ONCE)):
        yield dataset.read(indices)


def _bytes(dataset: Dataset) -> dict[str, Any]:
    columns: dict[str, int] = {}
    for entry in dataset.manifest.shards:
        for name, size in column_bytes(dataset.folder / entry.file).items():
            columns[name] = columns.get(name, 0) + size
    total = sum(columns.values())
    tokens, scored = max(1, dataset.num_tokens), max(1, dataset.num_scored)
    return {
        "total": total,
        "per_token": total / tokens,
        "per_scored": total / scored,
        "columns": {
            name: {"bytes": size, "per_token": size / tokens, "per_scored": size / scored}
            for name, size in columns.items()
        },
    }
