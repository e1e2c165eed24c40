"""Which record goes to which split, decided before anything is tokenised or packed. Not a sampler: no repetition.

First of two passes over the corpus: every record is read, checked and reduced to a 128-bit key of its normalised
text, 24 bytes in memory a record whatever its length. The second pass (`spool.py`) renders the chosen ones.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.job import Emit

from .formats import read_records
from .records import Record, TextRecord


@dataclass(frozen=True, eq=False)
class Survey:
    """What the first pass found."""

    keys: NDArray[np.uint64]  # [n, 2], one row a usable record, in corpus order
    ordinals: NDArray[np.int64]  # [n], index of the record in the corpus (all files, in order)
    dropped: Counter[str]
    """Reason -> records: `empty`, `no_response`."""
    first_chat: str | None
    """Place of the first conversation: those need a chat template."""


@dataclass(frozen=True, eq=False)
class Split:
    """Ordinals of the chosen records, in the order in which they are packed (a seeded shuffle)."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    duplicates: int
    """Usable records whose normalised text came before; only the first is kept."""
    shrunk: bool
    """The corpus has fewer samples than asked for: both sizes were cut in proportion."""


def document_key(record: Record) -> bytes:
    """16 bytes that are equal for texts equal after NFC, case folding and white-space collapsing."""
    if isinstance(record, TextRecord):
        parts = [record.text]
    else:
        parts = [part for m in record.messages for part in (m.role, m.content)]
    normalised = [" ".join(unicodedata.normalize("NFC", part).casefold().split()) for part in parts]
    # \x1f cannot appear inside a part: str.split() takes it for white space.
    return hashlib.sha256("\x1f".join(normalised).encode()).digest()[:16]


def survey(paths: Sequence[Path], emit: Emit) -> Survey:
    """Read and check every record of every file.

    Raises:
        UserError: the first record that cannot be used, or a file without any record.
    """
    keys, ordinals = array("Q"), array("q")
    dropped: Counter[str] = Counter()
    first_chat = None
    ordinal, told = 0, time.monotonic()
    for path in paths:
        before = ordinal
        for record in read_records(path):
            reason = _unusable(record)
            if reason:
                dropped[reason] += 1
            else:
                keys.frombytes(document_key(record))
                ordinals.append(ordinal)
                if first_chat is None and not isinstance(record, TextRecord):
                    first_chat = record.place
            ordinal += 1
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                emit(_progress(ordinal, path))
        if ordinal == before:
            raise UserError(
                f"{path}: the file holds no record (it is empty but for white space); fill it or leave it out"
            )
    return Survey(
        np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2), np.frombuffer(ordinals, np.int64), dropped, first_chat
    )


def assign(found: Survey, train_size: int, val_size: int, seed: int) -> Split:
    """Choose the samples of both splits among the distinct records.

    Every distinct record has a rank that depends on (seed, its text) only; validation takes the lowest ranks and
    training the next, so that growing the corpus or `train_size` moves as few samples as possible.
    A corpus smaller than `train_size + val_size` is shared out in their proportion, at least one sample each.

    Raises:
        UserError: too few samples for that.
    """
    first = _first_occurrences(found.keys)
    distinct = len(first)
    needed = 2 if val_size else 1
    if distinct < needed:
        raise UserError(
            f"prepare.input: the corpus holds {distinct} usable {'sample' if distinct == 1 else 'samples'}"
            f"{_dropped_note(found, len(found.keys) - distinct)}, at least {needed} are needed "
            f"(train_size {train_size}, val_size {val_size}); add records, part a .txt by lines of ---, "
            "or set prepare.val_size=0"
        )
    shrunk = distinct < train_size + val_size
    if shrunk:
        share = round(distinct * val_size / (train_size + val_size))
        val_size = min(max(share, 1), distinct - 1) if val_size else 0
        train_size = distinct - val_size
    keys = found.keys[first]
    salt = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    order = np.lexsort((keys[:, 1], _splitmix64(keys[:, 0] ^ salt)))
    chosen = found.ordinals[first][order]
    return Split(
        train=chosen[val_size : val_size + train_size],
        val=chosen[:val_size],
        duplicates=len(found.keys) - distinct,
        shrunk=shrunk,
    )


def _unusable(record: Record) -> str | None:
    if isinstance(record, TextRecord):
        return None if record.text.strip() else "empty"
    return None if record.messages else "no_response"


def _first_occurrences(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices, ascending, of the first row of each distinct key."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in corpus order
    ordered = keys[order]
    is_first = np.ones(len(keys), dtype=np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[is_first])


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of Steele, Lea and Flood (2014): a bijection of 64-bit words that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _dropped_note(found: Survey, duplicates: int) -> str:
    counts = {**found.dropped, **({"duplicate": duplicates} if duplicates else {})}
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f" (left out: {listed})" if listed else ""


def _progress(done: int, path: Path) -> dict[str, object]:
    return {
        "event": "progress",
        "stage": "prepare",
        "done": done,
        "total": None,
        "unit": "records",
        "text": f"reading {path.name}",
    }
