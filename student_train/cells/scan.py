"""The linear recurrence along time, v_t = a_t v_{t-1} + b_t, in parallel and with its exact adjoint. Plain torch.

The scan tree depends on T alone: chunks of about sqrt(T / 2) steps run side by side, then the chunk ends are chained.
Values never decide anything and nothing is divided by, so |a| <= 1 is all that accuracy needs; v_t is a function of
a, b up to t, bit for bit. Computes in the dtype it is given: pass float32 or wider.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


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
    return _scan(after, g, backwards=True)


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
def _scan(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
    """v_t = a_t v_{t-1} + b_t, or v_t = a_t v_{t+1} + b_t when `backwards`; [B, T, U] all."""
    batch, steps, units = b.shape
    length = chunk_length(steps)
    chunks = -(-steps // length)
    pad = chunks * length - steps
    if pad:
        a, b = (torch.nn.functional.pad(x, (0, 0, pad, 0) if backwards else (0, 0, 0, pad)) for x in (a, b))
    a, b = a.reshape(batch, chunks, length, units), b.reshape(batch, chunks, length, units)
    v, decay = torch.empty_like(b), torch.empty_like(b)
    inside, across = list(range(length)), list(range(chunks))
    if backwards:
        inside.reverse()
        across.reverse()
    v[:, :, inside[0]], decay[:, :, inside[0]] = b[:, :, inside[0]], a[:, :, inside[0]]
    for before, i in pairwise(inside):
        torch.addcmul(b[:, :, i], a[:, :, i], v[:, :, before], out=v[:, :, i])
        torch.mul(a[:, :, i], decay[:, :, before], out=decay[:, :, i])
    ends, end_decay = v[:, :, inside[-1]], decay[:, :, inside[-1]]
    carry = torch.zeros_like(ends)
    for before, c in pairwise(across):
        torch.addcmul(ends[:, before], end_decay[:, before], carry[:, before], out=carry[:, c])
    v.addcmul_(decay, carry.unsqueeze(2))
    v = v.view(batch, chunks * length, units)
    return v[:, pad:] if backwards else v[:, :steps]
