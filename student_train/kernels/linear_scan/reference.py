"""`linear_scan` step by step, in plain torch: what is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def loop(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
    """v_t = a_t v_{t-1} + b_t, or v_t = a_t v_{t+1} + b_t when `backwards`; zeros beyond the ends. [B, T, U] all."""
    steps = range(b.shape[1])
    v, states = torch.zeros_like(b[:, 0]), [b[:, 0]] * b.shape[1]
    for t in reversed(steps) if backwards else steps:
        v = a[:, t] * v + b[:, t]
        states[t] = v
    return torch.stack(states, dim=1)
