"""The scan in plain torch, any device: chunks of about sqrt(T / 2) steps side by side, then the chunk ends are chained.

About 4 sqrt(T / 2) small launches: the twin for CPUs.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor


def chunk_length(steps: int) -> int:
    """Steps a chunk runs one after another: least launches for about 2 chunk + steps / chunk of them."""
    return max(1, round(math.sqrt(steps / 2)))


@torch.no_grad()
def chunked(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
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
