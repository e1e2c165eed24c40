"""Held-out figures of one predictor, position by position, then averaged. Dense only by chunks; no gradients.

A predictor is anything that gives log-probabilities over the real vocabulary: a student, or a unigram.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import Targets, hybrid
from .model.lm import Student
from .module import TokenBatch, hidden_of

CHUNK_BYTES = 64 * 2**20
TOP = 5

Predictor = Callable[[TokenBatch, Tensor], Iterator[Tensor]]
"""(batch, flat index [N]) -> float32 log-probabilities [n, V] of consecutive chunks of the N positions."""


def positions_per_chunk(vocab: int) -> int:
    """Positions whose float32 log-probabilities fit into CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * vocab))


def student_predictor(student: Student) -> Predictor:
    """Causal where the student is; prompt runs as it was trained."""

    def predict(batch: TokenBatch, index: Tensor) -> Iterator[Tensor]:
        hidden = hidden_of(student, batch).flatten(0, 1)[index]
        for chunk in hidden.split(positions_per_chunk(student.vocab_rows)):
            yield torch.log_softmax(student.logits(chunk)[:, : student.vocab_size], dim=1)

    return predict


def unigram_predictor(log_unigram: Tensor) -> Predictor:
    """The same distribution [V] everywhere."""

    def predict(batch: TokenBatch, index: Tensor) -> Iterator[Tensor]:  # noqa: ARG001  looks at no token
        for chunk in index.split(positions_per_chunk(len(log_unigram))):
            yield log_unigram.expand(len(chunk), -1)

    return predict


@dataclass(frozen=True)
class Positions:
    """Figures of N positions, float64 [N] each; NaN where the shards do not say."""

    kl: Tensor
    """`hybrid`: unbiased for the KL to the teacher, nats."""
    cross_entropy: Tensor
    top1: Tensor
    """1 where the student's most likely token is the teacher's."""
    consistency: Tensor
    """Share of the teacher's up to 5 most likely stored ids among the student's 5."""


@torch.no_grad()
def score(predict: Predictor, batch: TokenBatch, targets: Targets) -> Positions:
    """Figures of the batch's N positions."""
    parts: list[list[Tensor]] = []
    start = 0
    for logprobs in predict(batch, targets.index):
        some = targets.part(slice(start, start + len(logprobs)))
        start += len(logprobs)
        picked = logprobs.gather(1, some.ids).masked_fill(~some.mask, 0.0)
        top = logprobs.topk(TOP, dim=1).indices
        stored = some.head_mask[:, :TOP]
        shared = ((some.ids[:, :TOP, None] == top[:, None, :]).any(2) & stored).sum(1)
        known = torch.where(some.head_mask[:, 0], 1.0, math.nan)
        parts.append(
            [
                hybrid(picked, torch.zeros_like(picked[:, 0]), some),
                -logprobs.gather(1, some.labels[:, None])[:, 0],
                (top[:, 0] == some.ids[:, 0]) * known,
                shared / stored.sum(1),
            ]
        )
    return Positions(*(torch.cat(column).double().cpu() for column in zip(*parts, strict=True)))


def mean_and_error(values: Tensor, groups: Tensor) -> tuple[float, float]:
    """Mean over N values and its standard error, the values of one group (row of text) being dependent.

    The usual cluster estimate: the variance of the groups' summed deviations from the mean. NaN with one group.
    """
    mean = values.mean()
    names, group = torch.unique(groups, return_inverse=True)
    n = len(names)
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, group, values - mean)
    error = math.nan if n < 2 else math.sqrt(float(sums.square().sum()) * n / (n - 1)) / len(values)
    return float(mean), error


@dataclass(frozen=True)
class Exact:
    """Figures against full teacher distributions, float64 [N] each."""

    kl: Tensor
    acceptance: Tensor
    """sum of min(p, q): the chance that speculative decoding keeps this student's draw."""


@torch.no_grad()
def score_exactly(predict: Predictor, batch: TokenBatch, index: Tensor, teacher: Tensor) -> Exact:
    """Against `teacher`: float16 log-probabilities [N, V] of the positions `index` [N]."""
    kl, acceptance = [], []
    start = 0
    for logprobs in predict(batch, index):
        log_p = torch.log_softmax(teacher[start : start + len(logprobs)].to(logprobs.device).float(), dim=1)
        start += len(logprobs)
        p = log_p.exp()
        kl.append(torch.where(p > 0, p * (log_p - logprobs), 0.0).sum(1).double().cpu())
        acceptance.append(torch.minimum(p, logprobs.exp()).sum(1).double().cpu())
    return Exact(torch.cat(kl), torch.cat(acceptance))
