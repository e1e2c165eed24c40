"""`linear_logsumexp_gather` in plain torch, any device, by chunks of rows; backward recomputes the logits.

Memory beyond inputs and gradients: one chunk of logits (at most `CHUNK_BYTES`), and for narrow dtypes one widened copy
of the weight. It is opaque to torch.compile on purpose: Dynamo would look at a ZeRO-3 parameter while it is not
gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import accumulation_dtype

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Plan:
    """What is no tensor."""

    num_real: int
    temperatures: tuple[float, ...]
    rows_per_chunk: int


@torch.compiler.disable
def chunked(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    num_real: int | None = None,
    bias: Tensor | None = None,
    temperatures: tuple[float, ...] = (1.0,),
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linear_logsumexp_gather`; `rows_per_chunk` overrides the size that `CHUNK_BYTES` gives."""
    num_real = weight.shape[0] if num_real is None else num_real
    dtype = accumulation_dtype(hidden.dtype)
    if rows_per_chunk is None:
        rows_per_chunk = max(1, CHUNK_BYTES // (num_real * dtype.itemsize))
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    safe_ids = ids.masked_fill(~mask, 0)
    return _Chunked.apply(hidden, weight, bias, safe_ids, mask, _Plan(num_real, temperatures, rows_per_chunk))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)


class _Chunked(torch.autograd.Function):
    """Saves the inputs and the normalisers, never the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        mask: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(hidden.dtype)
        wide = weight[: plan.num_real].to(dtype)
        wide_bias = None if bias is None else bias[: plan.num_real].to(dtype)
        picked = hidden.new_empty(ids.shape, dtype=dtype)
        logsumexp = hidden.new_empty((hidden.shape[0], len(plan.temperatures)), dtype=dtype)
        for start in range(0, hidden.shape[0], plan.rows_per_chunk):
            rows = slice(start, start + plan.rows_per_chunk)
            logits = _logits(hidden[rows].to(dtype), wide, wide_bias)
            picked[rows] = logits.gather(1, ids[rows])
            for c, temperature in enumerate(plan.temperatures):
                logsumexp[rows, c] = torch.logsumexp(logits if temperature == 1.0 else logits / temperature, dim=1)
        picked.masked_fill_(~mask, 0.0)
        ctx.save_for_backward(hidden, weight, bias, ids, mask, logsumexp)
        ctx.plan = plan
        return picked, logsumexp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, grad_logsumexp: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, mask, logsumexp = ctx.saved_tensors
        dtype, num_real = logsumexp.dtype, ctx.plan.num_real
        wide = weight[:num_real].to(dtype)
        wide_bias = None if bias is None else bias[:num_real].to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        grad_bias = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
        grad_picked = grad_picked.masked_fill(~mask, 0.0)
        for start in range(0, hidden.shape[0], ctx.plan.rows_per_chunk):
            rows = slice(start, start + ctx.plan.rows_per_chunk)
            wide_hidden = hidden[rows].to(dtype)
            grad_logits = _grad_logits(
                _logits(wide_hidden, wide, wide_bias), logsumexp[rows], grad_logsumexp[rows], ctx.plan.temperatures
            )
            grad_logits.scatter_add_(1, ids[rows], grad_picked[rows])
            grad_hidden[rows] = (grad_logits @ wide).to(hidden.dtype)
            grad_weight[:num_real].addmm_(grad_logits.T, wide_hidden)
            grad_bias[:num_real] += grad_logits.sum(0)
        bias_out = None if bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), bias_out, None, None, None


def _grad_logits(logits: Tensor, logsumexp: Tensor, upstream: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """[n, V]: sum over temperatures of upstream * softmax(logits / T) / T; overwrites `logits` when it can."""
    if len(temperatures) == 1:
        t = temperatures[0]
        logits.div_(t).sub_(logsumexp).exp_()
        return logits.mul_(upstream / t)
    total = torch.zeros_like(logits)
    for c, t in enumerate(temperatures):
        total += torch.exp(logits / t - logsumexp[:, c : c + 1]) * (upstream[:, c : c + 1] / t)
    return total
