"""Do these shards fit together and into a student? Asked before anything is built."""

from __future__ import annotations

from pathlib import Path

from shards import Dataset, Header, ShardError, open_dataset
from shards.errors import UserError
from shards.reader import Order

from .config import LossConfig


def tokenizer_folder(shards: Path) -> Path:
    """Where the dump put the teacher's tokenizer."""
    return shards / "teacher" / "tokenizer"


def open_captures(shards: Path, split: str, order: Order = "rank") -> Dataset:
    """The captures of one split. `order`: see `open_dataset`.

    Raises:
        ShardError: missing, unfinished, empty, or rows that no teacher has scored.
    """
    dataset = open_dataset(shards / split, order=order)
    if dataset.header.kind != "captures":
        raise ShardError(
            f"{shards / split}: holds rows without captures (kind '{dataset.header.kind}'); run the dump on them first"
        )
    if len(dataset) == 0 or dataset.num_scored == 0:
        raise ShardError(f"{shards / split}: no scored positions; prepare more text and dump it")
    return dataset


def temperature_column(header: Header, loss: LossConfig, place: Path) -> int:
    """Which of the stored rest masses belongs to the loss's temperature.

    Raises:
        UserError: none does, and a part of the loss needs it.
    """
    wanted = loss.temperatures[-1]
    if wanted in header.temperatures:
        return header.temperatures.index(wanted)
    stored = ", ".join(f"{t:g}" for t in header.temperatures)
    raise UserError(
        f"train.loss.temperature: {wanted:g} is not stored in {place}, which holds rest masses at {stored}; "
        "take one of those, or dump again with it in dump.temperatures"
    )


def check_sources(dataset: Dataset, loss: LossConfig, place: Path) -> None:
    """Refuse weights for sources of which the shards hold no row.

    Raises:
        UserError: naming the sources that there are.
    """
    if not loss.source_weights:
        return
    found = {row.source for row in dataset.rows()}
    unknown = sorted(set(loss.source_weights) - found)
    if unknown:
        raise UserError(
            f"train.loss.source_weights: no row of {place} comes from '{unknown[0]}'; "
            f"its sources are {', '.join(sorted(found))}"
        )
    if all(loss.source_weights.get(source, 1.0) == 0 for source in found):
        raise UserError(f"train.loss.source_weights: every source of {place} has weight 0; give one a positive weight")


def check_same_teacher(train: Header, other: Header, place: Path) -> None:
    """Refuse shards whose vocabulary, tokenizer or teacher is another than that of the training shards.

    Raises:
        ShardError: naming the first difference.
    """
    for name in ("vocab_size", "vocab_rows"):
        ours, theirs = getattr(train, name), getattr(other, name)
        if ours != theirs:
            raise ShardError(f"{place}: {name} {theirs}, the training shards have {ours}; dump both with one teacher")
    for name in ("tokenizer", "teacher"):
        if train.fingerprints.get(name) != other.fingerprints.get(name):
            raise ShardError(f"{place}: made with another {name} than the training shards; dump both with one teacher")
