"""The one heavy primitive of sparse distillation: picked logits and normalisers of a linear head.

    logits[n, v] = hidden[n] . weight[v] + bias[v]            v < num_real; other rows are dead
    picked[n, s] = logits[n, ids[n, s]]                       0 where mask is False
    logsumexp[n, c] = log sum_v exp(logits[n, v] / temperatures[c])

Every loss of `student_train.losses` is a few lines on these [N, S] and [N, C] tensors, so [N, V] never has to exist.
`reference.py` says what is computed; `chunked.py` computes it in bounded memory on any device.
"""

from __future__ import annotations

from torch import Tensor

from .chunked import chunked
from .reference import dense

__all__ = ["chunked", "dense", "linear_logsumexp_gather"]


def linear_logsumexp_gather(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    num_real: int | None = None,
    bias: Tensor | None = None,
    temperatures: tuple[float, ...] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """The fastest exact twin for these inputs (today: `chunked` everywhere).

    Args:
        hidden: [N, D] float; bfloat16 and float16 are accumulated in float32.
        weight: [V, D], may be longer than the vocabulary.
        ids: [N, S] integers, each < num_real where the mask is True. Repeats are allowed; their gradients add up.
        mask: [N, S] bool; None: all True.
        num_real: rows of `weight` that have a token; None: all V.
        bias: [V] or None.
        temperatures: C positive numbers for the normaliser; the picked logits are never tempered.

    Returns:
        picked [N, S] and logsumexp [N, C], float32 (float64 for float64 inputs), both differentiable
        in hidden, weight and bias for any upstream gradients.
    """
    return chunked(hidden, weight, ids, mask=mask, num_real=num_real, bias=bias, temperatures=temperatures)
