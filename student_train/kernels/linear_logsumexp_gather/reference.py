"""The law: `linear_logsumexp_gather` in dense torch and autograd. Readable, and [N, V] in memory: for tests only."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    num_real: int | None = None,
    bias: Tensor | None = None,
    temperatures: tuple[float, ...] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """As `linear_logsumexp_gather`: picked [N, S], logsumexp [N, C]."""
    dtype = accumulation_dtype(hidden.dtype)
    real = slice(0, num_real)
    logits = hidden.to(dtype) @ weight[real].to(dtype).T
    if bias is not None:
        logits = logits + bias[real].to(dtype)
    logsumexp = torch.stack([torch.logsumexp(logits / t, dim=1) for t in temperatures], dim=1)
    if mask is None:
        return logits.gather(1, ids), logsumexp
    picked = logits.gather(1, ids.masked_fill(~mask, 0))
    return picked.masked_fill(~mask, 0.0), logsumexp
