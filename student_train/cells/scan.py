"""The linear recurrence along time, v_t = a_t v_{t-1} + b_t, in parallel and with its exact adjoint. Plain torch.

The scan tree depends on T alone: chunks of about sqrt(T / 2) steps run side by side, then the chunk ends are chained.
Values never decide anything and nothing is divided by, so |a| <= 1 is all that accuracy needs; v_t is a function of
a, b up to t, bit for bit. Computes in the dtype it is given: pass float32 or wider.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """v [B, T, U] with v_t = a_t * v_{t-1} + b_t and v_{-1} = `initial` [B, U] (None: zeros). Differentiable in all three."""
    if initial is not None:
        first = b[:, :1] + a[:, :1] * initial.unsqueeze(1)
        b = first if b.shape[1] == 1 else torch.cat([first, b[:, 1:]], dim=1)
    v: Tensor = _LinearScan.apply(a, b)
    return v


def reversed_scan(a: Tensor, g: Tensor) -> Tensor:
    """l [B, T, U] with l_t = g_t + a_{t+1} * l_{t+1}: the adjoint of `linear_scan` in b. Not differentiable."""
    after = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
    return _scan(after.flip(1), g.flip(1)).flip(1)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        v = _scan(a, b)
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


def chunk_length(steps: int) -> int:
    """Steps a chunk runs one after another: least launches for about 2 chunk + steps / chunk of them."""
    return max(1, round(math.sqrt(steps / 2)))


@torch.no_grad()
def _scan(a: Tensor, b: Tensor) -> Tensor:
    batch, steps, units = b.shape
    length = chunk_length(steps)
    chunks = -(-steps // length)
    if chunks * length != steps:
        a, b = (torch.nn.functional.pad(x, (0, 0, 0, chunks * length - steps)) for x in (a, b))
    a, b = a.reshape(batch, chunks, length, units), b.reshape(batch, chunks, length, units)
    v, decay = torch.empty_like(b), torch.empty_like(b)
    v[:, :, 0], decay[:, :, 0] = b[:, :, 0], a[:, :, 0]
    for i in range(1, length):
        torch.addcmul(b[:, :, i], a[:, :, i], v[:, :, i - 1], out=v[:, :, i])
        torch.mul(a[:, :, i], decay[:, :, i - 1], out=decay[:, :, i])
    ends, end_decay = v[:, :, -1], decay[:, :, -1]
    carry = torch.zeros_like(ends)
    for c in range(1, chunks):
        torch.addcmul(ends[:, c - 1], end_decay[:, c - 1], carry[:, c - 1], out=carry[:, c])
    v.addcmul_(decay, carry.unsqueeze(2))
    return v.reshape(batch, chunks * length, units)[:, :steps]
