"""A dataset in words and numbers: header, counts, the first rows with the teacher's head. Reads only what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards import Row, open_dataset

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text."""


def describe(folder: Path, num_rows: int, num_positions: int) -> dict[str, Any]:
    """JSON values: the header, the counts, and `num_rows` rows with their first scored positions.

    Raises:
        ShardError: no whole dataset there.
    """
    dataset = open_dataset(folder)
    decode = decoder_beside(folder)
    manifest = dataset.manifest
    return {
        "folder": str(folder),
        "header": dataset.header.to_json(),
        "rows": len(dataset),
        "tokens": dataset.num_tokens,
        "scored": dataset.num_scored,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "first_rows": [_row(row, num_positions, decode) for row in dataset.rows(0, num_rows)],
    }


def show(description: dict[str, Any], positions: bool = True) -> Iterator[str]:
    """The description as lines for a person; without `positions` the rows only."""
    header = description["header"]
    yield f"{description['folder']}: {header['kind']}, encoding {header['encoding']}"
    scored = description["scored"]
    each = f", {description['bytes'] / scored:.1f} bytes a scored position" if scored else ""
    yield (
        f"  {description['rows']:,} rows, {description['tokens']:,} tokens, {scored:,} scored, "
        f"{description['shards']} shards, {description['bytes']:,} bytes{each}"
    )
    vocabulary = f"{header['vocab_size']:,} real of {header['vocab_rows']:,}"
    yield f"  vocabulary {vocabulary} rows; sequences of at most {header['max_length']} tokens"
    if header["kind"] == "captures":
        head = f"at most {header['head_size']} ids up to mass {header['head_mass']}"
        yield f"  head: {head}; tail {header['tail']}; temperatures {header['temperatures']}"
    for name, value in header["fingerprints"].items():
        yield f"  {name}: {value if isinstance(value, str) else ', '.join(f'{k} {v}' for k, v in value.items())}"
    for row in description["first_rows"]:
        counts = f"{row['tokens']} tokens, {row['segments']} segments, source {row['source'] or '-'}"
        yield f"  row {row['row_id']} ({counts}): {row['text']}"
        for p in row["positions"] if positions else ():
            yield _position_line(p)


def decoder_beside(folder: Path) -> Decode:
    """Token ids -> text, by the tokenizer.json that prepare or dump left beside the dataset; else the bare id."""
    place = tokenizer_beside(folder)
    if place is not None:
        try:
            from tokenizers import Tokenizer  # comes with the phases' extras; the base install shows ids
        except ImportError:
            return _bare
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)
    return _bare


def tokenizer_beside(folder: Path) -> Path | None:
    """The tokenizer's folder that belongs to a dataset, where there is one."""
    places = (folder / "tokenizer", folder.parent / "tokenizer", folder.parent / "teacher" / "tokenizer")
    return next((place for place in places if (place / "tokenizer.json").exists()), None)


def _bare(ids: Sequence[int]) -> str:
    return " ".join(f"#{i}" for i in ids)


def _row(row: Row, num_positions: int, decode: Decode) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "tokens": row.num_tokens,
        "segments": len(row.segment_starts),
        "source": row.source,
        "text": repr(decode(row.input_ids[:48].tolist()))[1:-1],
        "positions": list(_positions(row, num_positions, decode)),
    }


def _positions(row: Row, num_positions: int, decode: Decode) -> Iterator[dict[str, Any]]:
    capture = row.capture
    if capture is None:
        return
    heads = np.concatenate([[0], np.cumsum(capture.head_lengths, dtype=np.int64)])
    tails = np.concatenate([[0], np.cumsum(capture.tail_lengths, dtype=np.int64)])
    labels = row.labels()
    for j, i in enumerate(row.scored_positions()[:num_positions]):
        head, tail = slice(heads[j], heads[j + 1]), slice(tails[j], tails[j + 1])
        probabilities = np.exp(capture.head_logprobs[head])
        yield {
            "position": int(i),
            "token": decode([int(row.input_ids[i])]),
            "label": decode([int(labels[j])]),
            "label_probability": float(np.exp(capture.label_logprob[j])),
            "label_rank": int(capture.label_rank[j]),
            "entropy": float(capture.entropy[j]),
            "head": [[decode([int(t)]), float(p)] for t, p in zip(capture.head_ids[head], probabilities, strict=True)],
            "rest_mass": [float(m) for m in capture.rest_mass[j]],
            "tail": [
                [decode([int(t)]), int(c)]
                for t, c in zip(capture.tail_ids[tail], capture.tail_counts[tail], strict=True)
            ],
        }


def _position_line(p: dict[str, Any]) -> str:
    head = " ".join(f"{token!r} {probability:.2f}" for token, probability in p["head"][:5])
    draws = sum(count for _, count in p["tail"])
    return (
        f"    {p['position']:4} {p['token']!r} -> {p['label']!r} "
        f"(p {p['label_probability']:.3f}, rank {p['label_rank']}): {head}; rest {p['rest_mass'][0]:.3f}, {draws} draws"
    )
