"""The one heavy primitive of sparse distillation: picked logits and normalisers of a linear head.

    logits[n, v] = hidden[n] . weight[v] + bias[v]            v < num_real; other rows are dead
    picked[n, s] = logits[n, ids[n, s]]                       0 where mask is False
    logsumexp[n, c] = log sum_v exp(logits[n, v] / temperatures[c])

Every loss of `student_train.losses` is a few lines on these [N, S] and [N, C] tensors, so [N, V] never has to exist.
`reference.py` says what is computed; `chunked.py` computes it in bounded memory on any device, `triton.py` on CUDA.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .chunked import chunked
from .reference import dense

FUSED_WIDTH = 512
"""Largest D of the Triton twin, which holds a row of hidden whole."""

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
    """The fastest exact twin for these inputs: Triton's for narrow dtypes on CUDA, else `chunked`.

    Under `torch.use_deterministic_algorithms` it is always `chunked`: Triton adds repeated ids in no fixed order.

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
    if _fused_fits(hidden, weight):
        from .triton import fused

        return fused(hidden, weight, ids, mask=mask, num_real=num_real, bias=bias, temperatures=temperatures)
    return chunked(hidden, weight, ids, mask=mask, num_real=num_real, bias=bias, temperatures=temperatures)


def _fused_fits(hidden: Tensor, weight: Tensor) -> bool:
    """Whether `triton.fused` takes these inputs and is the faster twin for them."""
    return (
        hidden.is_cuda
        and hidden.dtype in (torch.bfloat16, torch.float16)
        and weight.dtype == hidden.dtype
        and hidden.shape[1] <= FUSED_WIDTH
        and not torch.are_deterministic_algorithms_enabled()
        and importlib.util.find_spec("triton") is not None
    )
