"""What the teacher said, as padded tensors on [N, S]: built from captures, consumed by the losses.

N scored positions of a micro-batch, S the largest support (head and tail draws) among them. A support is head first
(value descending), then the drawn ids; padding has mask False, id 0 and q 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from shards.rows import Capture


@dataclass(frozen=True, eq=False)
class Targets:
    """Sparse teacher targets of one micro-batch."""

    index: Tensor  # int64 [N], position as a flat index into [B * T]
    labels: Tensor  # int64 [N], the corpus token that follows
    ids: Tensor  # int64 [N, S]
    mask: Tensor  # bool [N, S]
    q: Tensor  # float32 [N, S], hybrid target; sums to 1, or to 1 - rest where nothing was drawn
    head_mask: Tensor  # bool [N, S]
    logprobs: Tensor  # float32 [N, S], teacher's log-probability, T = 1, head columns only
    rest: Tensor  # float32 [N], mass outside the head
    tempered_rest: Tensor  # float32 [N], the same at the loss's temperature
    label_logprob: Tensor  # float32 [N], teacher's, of the label, also outside the head
    entropy: Tensor  # float32 [N], of the full distribution, nats
    weight: Tensor  # float32 [N]

    def to(self, device: torch.device) -> Targets:
        """The same targets on `device`."""
        return Targets(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def part(self, positions: slice) -> Targets:
        """Some of the N positions."""
        return Targets(**{f.name: getattr(self, f.name)[positions] for f in fields(self)})


def ragged_columns(lengths: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every item of a position-major flat list: item j of position n goes to (n, offset[n] + j)."""
    lengths = lengths.astype(np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return rows, np.repeat(offset, lengths) + within


def build_targets(
    index: np.ndarray,
    labels: np.ndarray,
    captures: Sequence[Capture],
    weight: np.ndarray | None = None,
    temperature_column: int = 0,
) -> Targets:
    """Pad the captures of one micro-batch, in order, to one support size.

    Args:
        index: int64 [N], where each scored position lies in the flattened [B * T] batch.
        labels: integers [N].
        captures: their positions, concatenated, are the N positions.
        weight: float [N]; None: all 1.
        temperature_column: which of the stored rest masses is that of the loss's temperature.

    Returns:
        Targets on the CPU. With N = 0: one position of weight 0, so that every rank runs the same operations.
    """
    if len(index) == 0:
        return _nothing()
    head_lengths = np.concatenate([c.head_lengths for c in captures]).astype(np.int64)
    tail_lengths = np.concatenate([c.tail_lengths for c in captures]).astype(np.int64)
    tail_counts = np.concatenate([c.tail_counts for c in captures]).astype(np.float64)
    rest = np.concatenate([c.rest_mass[:, 0] for c in captures]).astype(np.float64)
    tempered_rest = np.concatenate([c.rest_mass[:, temperature_column] for c in captures]).astype(np.float32)
    label_logprob = np.concatenate([c.label_logprob for c in captures]).astype(np.float32)
    N, S = len(index), max(1, int((head_lengths + tail_lengths).max()))
    assert len(head_lengths) == N == len(labels), (len(head_lengths), N, len(labels))
    head = ragged_columns(head_lengths, np.zeros(N, np.int64))
    tail = ragged_columns(tail_lengths, head_lengths)

    ids = np.zeros((N, S), np.int64)
    ids[head] = np.concatenate([c.head_ids for c in captures])
    ids[tail] = np.concatenate([c.tail_ids for c in captures])
    head_mask = np.zeros((N, S), np.bool_)
    head_mask[head] = True
    mask = head_mask.copy()
    mask[tail] = True
    logprobs = np.zeros((N, S), np.float32)
    logprobs[head] = np.concatenate([c.head_logprobs for c in captures])

    q = np.where(head_mask, np.exp(logprobs.astype(np.float64)), 0.0)
    head_sum = q.sum(axis=1, keepdims=True)
    q *= (1.0 - rest[:, None]) / np.where(head_sum > 0, head_sum, 1.0)
    draws = np.bincount(tail[0], weights=tail_counts, minlength=N)
    q[tail] = tail_counts * (rest / np.where(draws > 0, draws, 1.0))[tail[0]]
    return Targets(
        index=torch.from_numpy(np.asarray(index, np.int64)),
        labels=torch.from_numpy(np.asarray(labels, np.int64)),
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        q=torch.from_numpy(q.astype(np.float32)),
        head_mask=torch.from_numpy(head_mask),
        logprobs=torch.from_numpy(logprobs),
        rest=torch.from_numpy(rest.astype(np.float32)),
        tempered_rest=torch.from_numpy(tempered_rest),
        label_logprob=torch.from_numpy(label_logprob),
        entropy=torch.from_numpy(np.concatenate([c.entropy for c in captures]).astype(np.float32)),
        weight=torch.from_numpy(np.ones(N, np.float32) if weight is None else np.asarray(weight, np.float32)),
    )


def _nothing() -> Targets:
    """One position of weight 0 whose losses are finite."""
    return Targets(
        index=torch.zeros(1, dtype=torch.int64),
        labels=torch.zeros(1, dtype=torch.int64),
        ids=torch.zeros(1, 1, dtype=torch.int64),
        mask=torch.zeros(1, 1, dtype=torch.bool),
        q=torch.zeros(1, 1),
        head_mask=torch.zeros(1, 1, dtype=torch.bool),
        logprobs=torch.zeros(1, 1),
        rest=torch.zeros(1),
        tempered_rest=torch.zeros(1),
        label_logprob=torch.zeros(1),
        entropy=torch.zeros(1),
        weight=torch.zeros(1),
    )
