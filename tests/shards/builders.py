"""Synthetic rows that are consistent by construction: every capture is computed from a full random distribution."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shards import Capture, DatasetWriter, Header, Row, plan_shards

VOCAB = 50


def make_header(num_rows: int, **changes: Any) -> Header:
    """A header for captures of `make_row`; pass `kind="rows"` for a prepared corpus."""
    values: dict[str, Any] = {
        "kind": "captures",
        "num_rows": num_rows,
        "vocab_size": VOCAB,
        "vocab_rows": VOCAB + 6,
        "max_length": 64,
        "head_size": 6,
        "head_mass": 0.9,
        "tail": {"draws_per_mass": 16.0},
        "temperatures": (1.0, 2.0),
        "fingerprints": {"teacher": {"weights": "aa"}, "tokenizer": "bb", "chat_template": "", "corpus": "cc"},
        "extra": {"split": "train"},
    }
    return Header(**(values | changes))


def make_row(
    row_id: int,
    header: Header,
    *,
    length: int | None = None,
    seed: int = 0,
    sharpness: float = 2.0,
    label_boost: float = 0.0,
) -> Row:
    """A row of up to three segments with about three quarters of its positions scored.

    `label_boost` is added to the logit of every label, which makes labels predictable.
    """
    rng = np.random.default_rng([seed, row_id])
    T = int(rng.integers(1, header.max_length + 1)) if length is None else length
    input_ids = rng.integers(0, header.vocab_size, T).astype(np.int32)
    inner = rng.choice(np.arange(1, T), min(2, T - 1), replace=False) if T > 1 else np.empty(0, np.int64)
    segment_starts = np.sort(np.append(inner, 0)).astype(np.int32)
    runs = [(0, min(3, T))] if row_id % 2 else []
    runs = [(start, min(end, *segment_starts[1:].tolist(), end)) for start, end in runs]
    scored = rng.random(T - 1) < 0.75
    scored[segment_starts[1:] - 1] = False
    for start, end in runs:
        scored[max(0, start - 1) : end - 1] = False
    row = Row(
        row_id=row_id,
        input_ids=input_ids,
        segment_starts=segment_starts,
        prompt_runs=np.array(runs, np.int32).reshape(-1, 2),
        scored=scored,
        source="novels" if row_id % 3 else "facts",
        document_ids=np.arange(len(segment_starts), dtype=np.int64) + 10 * row_id,
        continued=np.arange(len(segment_starts)) == 0,
        scored_bytes=4 * int(scored.sum()),
    )
    if header.kind == "rows":
        return row
    logits = rng.normal(0, sharpness, (row.num_scored, header.vocab_size))
    logits[np.arange(row.num_scored), row.labels()] += label_boost
    return with_capture(row, logits, header, rng)


def with_capture(row: Row, logits: np.ndarray, header: Header, rng: np.random.Generator) -> Row:
    """`row` with the capture of `logits` [n, V]: the slow, plain definition of every column."""
    fields: dict[str, list[Any]] = {
        name: []
        for name in (
            "head_lengths",
            "head_ids",
            "head_logprobs",
            "rest_mass",
            "tail_lengths",
            "tail_ids",
            "tail_counts",
            "label_logprob",
            "label_rank",
            "entropy",
            "tail_logprobs",
            "logsumexp",
        )
    }
    for position, label in zip(logits.astype(np.float64), row.labels(), strict=True):
        normaliser = np.log(np.exp(position).sum())
        logprobs = position - normaliser
        order = np.lexsort((np.arange(len(position)), -logprobs))
        head = _head(order, np.exp(logprobs), header)
        outside = np.setdiff1d(np.arange(len(position)), head)
        rests = [np.exp(_log_softmax(position / t))[outside].sum() for t in header.temperatures]
        ids, counts = _draw(outside, np.exp(logprobs), rests[0], header, rng)
        fields["head_lengths"].append(len(head))
        fields["head_ids"].extend(head)
        fields["head_logprobs"].extend(logprobs[head])
        fields["rest_mass"].append(rests)
        fields["tail_lengths"].append(len(ids))
        fields["tail_ids"].extend(ids)
        fields["tail_counts"].extend(counts)
        fields["tail_logprobs"].extend(logprobs[ids])
        fields["label_logprob"].append(logprobs[label])
        fields["label_rank"].append(int(np.flatnonzero(order == label)[0]))
        fields["entropy"].append(-(np.exp(logprobs) * logprobs).sum())
        fields["logsumexp"].append(normaliser)
    types = {
        "head_lengths": np.uint16,
        "head_ids": np.int32,
        "tail_lengths": np.uint16,
        "tail_ids": np.int32,
        "tail_counts": np.uint16,
        "label_rank": np.uint32,
    }
    arrays = {name: np.array(values, types.get(name, np.float32)) for name, values in fields.items()}
    arrays["rest_mass"] = arrays["rest_mass"].reshape(-1, len(header.temperatures))
    for name in {"tail_logprobs", "logsumexp"} - set(header.optional_columns):
        arrays[name] = None
    return replace_capture(row, Capture(**arrays, dead_row_mass=0.001 * (row.row_id % 5)))


def replace_capture(row: Row, capture: Capture) -> Row:
    from dataclasses import replace

    return replace(row, capture=capture)


def write_dataset(
    folder: Path, header: Header, rows: Iterable[Row], *, rows_per_shard: int = 5, rows_per_batch: int = 2
) -> Path:
    """A finished dataset of `rows` (ids 0, 1, ...)."""
    rows = list(rows)
    writer = DatasetWriter(folder, header, plan_shards(header.num_rows, rows_per_shard), rows_per_batch)
    for plan in writer.missing():
        writer.write(plan, rows[plan.first_row : plan.first_row + plan.num_rows])
    writer.close()
    return folder


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum())


def _head(order: np.ndarray, probs: np.ndarray, header: Header) -> np.ndarray:
    top = order[: header.head_size]
    if header.head_mass < 1.0:
        enough = np.flatnonzero(np.cumsum(probs[top]) >= header.head_mass)
        top = top[: enough[0] + 1] if len(enough) else top
    kept = np.union1d(top, np.array(header.must_keep, np.int64))
    return order[np.isin(order, kept)]


def _draw(
    outside: np.ndarray, probs: np.ndarray, rest: float, header: Header, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if not header.tail or rest <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    m = header.tail.get("draws", int(np.ceil(np.float32(rest) * header.tail.get("draws_per_mass", 0))))
    return np.unique(rng.choice(outside, m, p=probs[outside] / probs[outside].sum()), return_counts=True)
