"""Shard rows -> tensors of one step. The order belongs to `shards.order`: a function of seed and step alone."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shards import Dataset, Row, rank_slice, step_rows

from .config import LossConfig
from .losses import Targets, build_targets, position_weights
from .module import TokenBatch

PREFETCH_STEPS = 2


@dataclass(frozen=True)
class Slice:
    """Which part of every global batch is ours."""

    seed: int
    global_batch: int
    micro: int
    """Rows in one micro-batch."""
    rank: int
    world: int
    shuffle: Literal["rows", "blocks"] = "rows"


@dataclass(frozen=True)
class Wanted:
    """What the loss asks of the shards."""

    loss: LossConfig = field(default_factory=LossConfig)
    temperature_column: int = 0
    """Which of the stored rest masses is that of `loss.temperature`."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """Our part of one step: one micro-batch per accumulation step, some of weight 0 at the end of an epoch."""

    step: int
    epoch: int
    rows: tuple[tuple[int, ...], ...]
    micro: tuple[tuple[TokenBatch, Targets], ...]
    weight: float
    """Sum of the weights of our positions."""
    tokens: int
    scored: int


def collate(rows: Sequence[Row], wanted: Wanted = Wanted()) -> tuple[TokenBatch, Targets]:
    """Rows with captures -> padded tensors (copies, never views of the shard's memory).

    No rows at all become one row of two tokens and one position of weight 0.
    """
    B, T = max(1, len(rows)), max((r.num_tokens for r in rows), default=2)
    input_ids = np.zeros((B, T), np.int64)
    lengths = np.full(B, 2, np.int64)
    reset = np.zeros((B, T), np.bool_)
    reset[:, 0] = True
    run_ids = np.full((B, T), -1, np.int32)
    for b, row in enumerate(rows):
        lengths[b] = row.num_tokens
        input_ids[b, : row.num_tokens] = row.input_ids
        reset[b, : row.num_tokens] = row.reset()
        for k, (start, stop) in enumerate(row.prompt_runs):
            run_ids[b, start:stop] = k
    batch = TokenBatch(*(torch.from_numpy(x) for x in (input_ids, lengths, reset, run_ids)))
    scored = [(b * T + row.scored_positions(), row) for b, row in enumerate(rows) if row.num_scored]
    if not scored:
        return batch, build_targets(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    captures = [row.capture for _, row in scored]
    assert None not in captures, "rows without captures cannot be trained on"
    index = np.concatenate([i for i, _ in scored])
    labels = np.concatenate([row.labels() for _, row in scored])
    weights = [
        position_weights(wanted.loss, c.entropy, row.source) for c, (_, row) in zip(captures, scored, strict=True) if c
    ]
    return batch, build_targets(
        index, labels, [c for c in captures if c is not None], np.concatenate(weights), wanted.temperature_column
    )


def load_step(dataset: Dataset, ours: Slice, step: int, wanted: Wanted = Wanted()) -> StepBatch:
    """Read and collate our micro-batches of step `step` (from 0)."""
    layout = dataset.layout if ours.shuffle == "blocks" else None
    rows, epoch = step_rows(ours.seed, step, len(dataset), ours.global_batch, layout)
    slices = rank_slice(rows, ours.rank, ours.world, ours.micro, ours.global_batch)
    loaded = [dataset.read(s) if s else [] for s in slices]
    micro = tuple(collate(m, wanted) for m in loaded)
    return StepBatch(
        step=step,
        epoch=epoch,
        rows=tuple(tuple(s) for s in slices),
        micro=micro,
        weight=sum(float(targets.weight.double().sum()) for _, targets in micro),
        tokens=sum(row.num_tokens for m in loaded for row in m),
        scored=sum(row.num_scored for m in loaded for row in m),
    )


def prefetched(load: Callable[[int], StepBatch], first: int, stop: int) -> Generator[StepBatch, None, None]:
    """`load(step)` for step in [first, stop), read ahead by one thread. Errors surface at their step."""
    ready: queue.Queue[StepBatch | BaseException] = queue.Queue(PREFETCH_STEPS)
    closed = threading.Event()

    def put(item: StepBatch | BaseException) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return

    def work() -> None:
        for step in range(first, stop):
            if closed.is_set():
                return
            try:
                put(load(step))
            except BaseException as e:  # noqa: BLE001  handed to the consumer, which raises it
                put(e)
                return

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        for _ in range(first, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


def label_counts(dataset: Dataset, vocab_size: int) -> NDArray[np.int64]:
    """[V] how often each token is a label."""
    counts = np.zeros(vocab_size, np.int64)
    for row in dataset.rows():
        counts += np.bincount(row.labels(), minlength=vocab_size)
    return counts


def log_unigram(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """[V] log-probabilities of the labels' unigram, additively smoothed.

    The pseudo-count is (distinct labels seen) / V, so unseen tokens share the mass that Witten and Bell (1991) give
    them: distinct / (distinct + total). Add-one would give most of the mass to a large vocabulary's unseen part.
    """
    distinct = max(1, int((counts > 0).sum()))
    smoothed = counts + distinct / len(counts)
    return np.log(smoothed / smoothed.sum()).astype(np.float32)
