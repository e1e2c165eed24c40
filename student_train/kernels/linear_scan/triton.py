"""The scan as one Triton launch: each program walks through time in tiles, a scan tree inside a tile, a carry between.

Reads a and b once and writes v once. Every value is computed in the dtype given (float32 or float64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T, BLOCK_U = 64, 32


@triton.jit
def chain(a_left, b_left, a_right, b_right):
    """Two affine maps in a row: first the left one."""
    return a_left * a_right, a_right * b_left + b_right


@triton.jit
def _scan(a, b, v, T, U, BACKWARDS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_U: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * T
    col = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    step = tl.arange(0, BLOCK_T)
    carry = tl.zeros((BLOCK_U,), v.dtype.element_ty)
    for start in tl.range(0, T, BLOCK_T, num_stages=3):
        t = start + step
        inside = (t < T)[:, None] & (col < U)[None, :]
        if BACKWARDS:
            t = T - 1 - t
        at = (row + t)[:, None] * U + col[None, :]
        gate = tl.load(a + at, mask=inside, other=0.0)
        value = tl.load(b + at, mask=inside, other=0.0)
        decay, state = tl.associative_scan((gate, value), 0, chain)
        state += decay * carry[None, :]
        carry = tl.sum(tl.where((step == BLOCK_T - 1)[:, None], state, 0.0), 0)
        tl.store(v + at, state, mask=inside)


def tiled(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
    """v_t = a_t v_{t-1} + b_t, or v_t = a_t v_{t+1} + b_t when `backwards`; [B, T, U] all."""
    a, b = a.contiguous(), b.contiguous()
    B, T, U = b.shape
    v = torch.empty_like(b)
    if v.numel():
        _scan[(B, triton.cdiv(U, BLOCK_U))](
            a, b, v, T, U, BACKWARDS=backwards, BLOCK_T=BLOCK_T, BLOCK_U=BLOCK_U, num_warps=4
        )
    return v
