"""The linear recurrence along time, v_t = a_t v_{t-1} + b_t, in parallel and with its exact adjoint.

The scan tree depends on T alone. Values never decide anything and nothing is divided by, so |a| <= 1 is all that
accuracy needs; v_t is a function of a, b up to t, bit for bit. Computes in the dtype it is given: pass
float32 or wider.
Twins: `reference.loop` (the law), `chunked.chunked` (plain torch), `triton.tiled` (one launch, CUDA).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import triton_runs
from .chunked import chunked
from .reference import loop

__all__ = ["chunked", "linear_scan", "loop", "reversed_scan"]


def linear_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """v [B, T, U] with v_t = a_t * v_{t-1} + b_t, v_{-1} = `initial` [B, U] (None: zeros). Differentiable."""
    if initial is not None:
        first = b[:, :1] + a[:, :1] * initial.unsqueeze(1)
        b = first if b.shape[1] == 1 else torch.cat([first, b[:, 1:]], dim=1)
    v: Tensor = _LinearScan.apply(a, b)
    return v


def reversed_scan(a: Tensor, g: Tensor) -> Tensor:
    """l [B, T, U] with l_t = g_t + a_{t+1} * l_{t+1}: the adjoint of `linear_scan` in b. Not differentiable."""
    after = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
    return scan(after, g, backwards=True)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        v = scan(a, b)
        ctx.save_for_backward(a, v)
        return v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, v = ctx.saved_tensors
        grad_b = reversed_scan(a, gradients[0])
        grad_a = torch.empty_like(a)
        grad_a[:, :1] = 0
        torch.mul(grad_b[:, 1:], v[:, :-1], out=grad_a[:, 1:])
        return grad_a, grad_b


@torch.no_grad()
def scan(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
    """v_t = a_t v_{t-1} + b_t, or v_t = a_t v_{t+1} + b_t when `backwards`, by the fastest twin for these tensors."""
    if triton_runs(b):
        from .triton import tiled

        return tiled(a, b, backwards=backwards)
    return chunked(a, b, backwards=backwards)
