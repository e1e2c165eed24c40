"""`linear_logsumexp_gather` on CUDA with Triton: logits live in registers, their gradient in slices.

Forward: one pass over the vocabulary keeps a running maximum and sum of exponentials for each row. Backward: for a
slice of the vocabulary the logits are recomputed and their gradient is written in the inputs' dtype, the sparse part
is added where it falls, and two library matmuls with float32 accumulation finish the slice. Memory beyond inputs and
gradients: one such slice, at most `SLICE_BYTES`. Importing this needs triton, which comes with CUDA builds of torch.
"""


# mypy: disable-error-code="no-untyped-def, import-not-found, import-untyped"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICE_BYTES = 256 * 2**20
PROGRAMS = 528
"""Wanted at least: four for each multiprocessor of an H100."""


@dataclass(frozen=True)
class Tile:
    """Launch shape of the two matmul kernels."""

    rows: int
    columns: int
    warps: int
    stages: int


def tile_for(width: int) -> Tile:
    """What fits into the shared memory of an H100."""
    return Tile(128, 64, 8, 3 if width <= 256 else 1)


@dataclass(frozen=True)
class _Plan:
    num_real: int
    temperatures: tuple[float, ...]
    tile: Tile
    slice_columns: int


@torch.compiler.disable
def fused(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    num_real: int | None = None,
    bias: Tensor | None = None,
    temperatures: tuple[float, ...] = (1.0,),
    tile: Tile | None = None,
    slice_columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linear_logsumexp_gather`, for D <= 512 and no float64."""
    assert hidden.shape[1] <= 512, hidden.shape  # a row of hidden is held whole
    num_real = weight.shape[0] if num_real is None else num_real
    tile = tile_for(hidden.shape[1]) if tile is None else tile
    if slice_columns is None:
        fitting = SLICE_BYTES // (max(1, hidden.shape[0]) * hidden.dtype.itemsize)
        slice_columns = max(tile.columns, fitting // tile.columns * tile.columns)
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    plan = _Plan(num_real, temperatures, tile, min(slice_columns, num_real))
    return _Fused.apply(hidden.contiguous(), weight, bias, ids.masked_fill(~mask, 0), mask, plan)


class _Fused(torch.autograd.Function):
    """Saves the inputs and the normalisers, never the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, mask: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        weight = weight.contiguous()
        N, D = hidden.shape
        picked = torch.zeros(ids.shape, dtype=torch.float32, device=hidden.device)
        logsumexp = torch.empty((N, len(plan.temperatures)), dtype=torch.float32, device=hidden.device)
        block_d = max(16, triton.next_power_of_2(D))
        if N:
            for c, temperature in enumerate(plan.temperatures):
                logsumexp[:, c] = _logsumexp(hidden, weight, bias, plan, temperature, block_d)
            _pick[(N,)](hidden, weight, weight if bias is None else bias, ids, mask, picked, ids.shape[1], D=D,
                        BLOCK_D=block_d, BLOCK_S=16, HAS_BIAS=bias is not None)  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, ids, mask, logsumexp)
        ctx.plan = plan
        return picked, logsumexp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, grad_logsumexp: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, mask, logsumexp = ctx.saved_tensors
        plan: _Plan = ctx.plan
        N, D = hidden.shape
        grad_hidden = torch.zeros((N, D), dtype=torch.float32, device=hidden.device)
        grad_weight = torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        grad_picked = grad_picked.masked_fill(~mask, 0.0).contiguous()
        grad_logsumexp = grad_logsumexp.contiguous()
        with_ones = torch.cat([hidden, hidden.new_ones(N, 1), hidden.new_zeros(N, 7)], 1)
        for start in range(0, plan.num_real if N else 0, plan.slice_columns):
            columns = slice(start, min(start + plan.slice_columns, plan.num_real))
            grad_logits = _grad_logits(hidden, weight, bias, logsumexp, grad_logsumexp, plan, columns)
            pairs = ids.numel()
            if pairs:
                _scatter[(triton.cdiv(pairs, 1024),)](
                    grad_logits, ids, grad_picked, pairs, ids.shape[1], columns.start, columns.stop, BLOCK=1024
                )
            grad_hidden += _matmul(grad_logits, weight[columns])
            product = _matmul(grad_logits.T, with_ones)
            grad_weight[columns] = product[:, :D]
            if grad_bias is not None:
                grad_bias[columns] = product[:, D]
            del grad_logits  # before the next slice is made
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """float32 product, accumulated in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _logsumexp(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, temperature: float, block_d: int
) -> Tensor:
    """[N]"""
    N, D = hidden.shape
    tile = plan.tile
    row_blocks, column_blocks = triton.cdiv(N, tile.rows), triton.cdiv(plan.num_real, tile.columns)
    per_program = triton.cdiv(column_blocks, max(1, PROGRAMS // row_blocks))
    splits = triton.cdiv(column_blocks, per_program)
    partial = torch.empty((splits, N), dtype=torch.float32, device=hidden.device)
    _partial_logsumexp[(row_blocks, splits)](
        hidden, weight, weight if bias is None else bias, partial, N, plan.num_real, 1 / temperature, per_program,
        D=D, BLOCK_D=block_d, BM=tile.rows, BN=tile.columns, HAS_BIAS=bias is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return torch.logsumexp(partial, 0)


def _grad_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logsumexp: Tensor,
    upstream: Tensor,
    plan: _Plan,
    columns: slice,
) -> Tensor:
    """[N, columns]: the dense part of the gradient."""
    N, D = hidden.shape
    tile, width = plan.tile, columns.stop - columns.start
    out = torch.empty((N, width), dtype=hidden.dtype, device=hidden.device)
    row_blocks, column_blocks = triton.cdiv(N, tile.rows), triton.cdiv(width, tile.columns)
    per_program = triton.cdiv(column_blocks, max(1, PROGRAMS // row_blocks))
    inverse = torch.tensor([1 / t for t in plan.temperatures], dtype=torch.float32, device=hidden.device)
    _softmax_gradient[(row_blocks, triton.cdiv(column_blocks, per_program))](
        hidden, weight, weight if bias is None else bias, logsumexp, upstream, inverse, out, N, columns.start,
        columns.stop, per_program, D=D, BLOCK_D=max(16, triton.next_power_of_2(D)), C=len(plan.temperatures),
        BM=tile.rows, BN=tile.columns, HAS_BIAS=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@triton.jit
def _partial_logsumexp(
    hidden, weight, bias, out, N, V, inverse, per_program,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out[split, n]: log-sum-exp over `per_program` tiles of the vocabulary."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, BLOCK_D)
    h = tl.load(
        hidden + rows[:, None].to(tl.int64) * D + d[None, :], mask=(rows[:, None] < N) & (d[None, :] < D), other=0.0
    )
    largest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    first = tl.program_id(1) * per_program
    for block in range(first, tl.minimum(first + per_program, tl.cdiv(V, BN))):
        columns = block * BN + tl.arange(0, BN)
        w = tl.load(
            weight + columns[None, :].to(tl.int64) * D + d[:, None],
            mask=(columns[None, :] < V) & (d[:, None] < D),
            other=0.0,
        )
        logits = tl.dot(h, w, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)[None, :]
        logits = tl.where(columns[None, :] < V, logits * inverse, float("-inf"))
        now = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(logits - now[:, None]), 1)
        largest = now
    tl.store(out + tl.program_id(1).to(tl.int64) * N + rows, largest + tl.log(total), mask=rows < N)


@triton.jit
def _softmax_gradient(
    hidden, weight, bias, logsumexp, upstream, inverses, out, N, start, stop, per_program,
    D: tl.constexpr, BLOCK_D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out[n, v - start] = sum over c of upstream[n, c] / T_c * exp(logit / T_c - logsumexp[n, c])."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, BLOCK_D)
    real = rows < N
    h = tl.load(hidden + rows[:, None].to(tl.int64) * D + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
    inverse = tl.load(inverses)
    lse = tl.load(logsumexp + rows * C, mask=real, other=0.0)
    factor = tl.load(upstream + rows * C, mask=real, other=0.0) * inverse
    first = tl.program_id(1) * per_program
    for block in range(first, tl.minimum(first + per_program, tl.cdiv(stop - start, BN))):
        columns = start + block * BN + tl.arange(0, BN)
        inside = columns < stop
        w = tl.load(
            weight + columns[None, :].to(tl.int64) * D + d[:, None], mask=inside[None, :] & (d[:, None] < D), other=0.0
        )
        logits = tl.dot(h, w, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        grad = tl.exp(logits * inverse - lse[:, None]) * factor[:, None]
        for c in tl.static_range(1, C):
            further = tl.load(inverses + c)
            further_lse = tl.load(logsumexp + rows * C + c, mask=real, other=0.0)
            further_factor = tl.load(upstream + rows * C + c, mask=real, other=0.0) * further
            grad += tl.exp(logits * further - further_lse[:, None]) * further_factor[:, None]
        place = rows[:, None].to(tl.int64) * (stop - start) + (columns - start)[None, :]
        tl.store(out + place, grad.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _pick(
    hidden, weight, bias, ids, mask, picked, S,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """picked[n, s] = hidden[n] . weight[ids[n, s]] + bias, 0 where masked; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    h = tl.load(hidden + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    for first in range(0, S, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        wanted = tl.load(mask + row * S + s, mask=s < S, other=0) != 0
        v = tl.load(ids + row * S + s, mask=wanted, other=0)
        w = tl.load(weight + v[:, None] * D + d[None, :], mask=wanted[:, None] & (d[None, :] < D), other=0.0)
        logit = tl.sum(w.to(tl.float32) * h[None, :], 1)
        if HAS_BIAS:
            logit += tl.load(bias + v, mask=wanted, other=0.0).to(tl.float32)
        tl.store(picked + row * S + s, logit, mask=wanted)


@triton.jit
def _scatter(grad_logits, ids, grad_picked, pairs, S, start, stop, BLOCK: tl.constexpr):
    """grad_logits[n, ids[n, s] - start] += grad_picked[n, s] where the id falls into [start, stop)."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(ids + pair, mask=pair < pairs, other=-1)
    inside = (v >= start) & (v < stop)
    g = tl.load(grad_picked + pair, mask=inside, other=0.0)
    place = (pair // S).to(tl.int64) * (stop - start) + v - start
    tl.atomic_add(grad_logits + place, g.to(grad_logits.dtype.element_ty), mask=inside & (g != 0.0), sem="relaxed")
