"""`linear_logsumexp_gather` in plain torch, any device, by tiles of the logits; backward recomputes them.

Memory beyond inputs and gradients: one tile of logits, two for several temperatures, a list of the picked places, and
for narrow dtypes one widened slice of the weight. On a CPU the tile is small enough to stay in cache, which is where
the time goes: exp and sums then cost arithmetic, not memory traffic. It is opaque to torch.compile on purpose: Dynamo
would look at a ZeRO-3 parameter while it is not gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import accumulation_dtype

CHUNK_BYTES = 64 * 2**20
"""One tile on a GPU: whole rows of the vocabulary."""
CPU_ROWS, CPU_COLUMNS = 512, 1024
"""One tile on a CPU: 2 MiB in float32."""


@dataclass(frozen=True)
class _Plan:
    """What is no tensor."""

    num_real: int
    temperatures: tuple[float, ...]
    rows: int
    columns: int

    def parts(self, num_rows: int) -> Iterator[tuple[slice, list[slice]]]:
        """Columns of the vocabulary, and the rows to go over for each."""
        rows = [slice(r, min(r + self.rows, num_rows)) for r in range(0, num_rows, self.rows)]
        for start in range(0, self.num_real, self.columns):
            yield slice(start, min(start + self.columns, self.num_real)), rows


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
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linear_logsumexp_gather`; `tile`: rows and vocabulary columns of the logits that exist at a time."""
    num_real = weight.shape[0] if num_real is None else num_real
    if tile is None and hidden.device.type == "cpu":
        tile = CPU_ROWS, CPU_COLUMNS
    elif tile is None:
        tile = max(1, CHUNK_BYTES // (num_real * accumulation_dtype(hidden.dtype).itemsize)), num_real
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    safe_ids = ids.masked_fill(~mask, 0)
    return _Chunked.apply(hidden, weight, bias, safe_ids, mask, _Plan(num_real, temperatures, *tile))


class _Places:
    """Where the picked logits lie: their places in [N, S], sorted by the tile into which they fall."""

    def __init__(self, ids: Tensor, plan: _Plan) -> None:
        self._ids, self._plan = ids.flatten(), plan
        self._per_row = ids.shape[1]
        self._order: Tensor | None = None
        if plan.columns >= plan.num_real:
            return
        row_parts = -(-ids.shape[0] // plan.rows)
        row = torch.arange(ids.shape[0], device=ids.device)[:, None]
        tile_of = (ids // plan.columns * row_parts + row // plan.rows).flatten()
        self._order = torch.argsort(tile_of, stable=True)
        tiles = row_parts * -(-plan.num_real // plan.columns)
        self._ends = torch.bincount(tile_of, minlength=tiles).cumsum(0).tolist()
        self._row_parts = row_parts

    def of(self, rows: slice, columns: slice) -> tuple[Tensor | slice, Tensor]:
        """Of one tile: places in the flattened [N, S], and the same as indices into the flattened tile."""
        width = columns.stop - columns.start
        if self._order is None:
            places = slice(rows.start * self._per_row, rows.stop * self._per_row)
            row = torch.arange(rows.stop - rows.start, device=self._ids.device).repeat_interleave(self._per_row)
            return places, row * width + self._ids[places]
        t = columns.start // self._plan.columns * self._row_parts + rows.start // self._plan.rows
        order = self._order[self._ends[t - 1] if t else 0 : self._ends[t]]
        row = torch.div(order, self._per_row, rounding_mode="floor") - rows.start
        return order, row * width + self._ids[order] - columns.start


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
        wide_hidden = hidden.to(dtype)
        picked = hidden.new_empty(ids.numel(), dtype=dtype)
        largest = hidden.new_full((hidden.shape[0], len(plan.temperatures)), float("-inf"), dtype=dtype)
        total = torch.zeros_like(largest)
        places = _Places(ids, plan)
        for columns, row_parts in plan.parts(hidden.shape[0]):
            wide = weight[columns].to(dtype)
            wide_bias = None if bias is None else bias[columns].to(dtype)
            for rows in row_parts:
                logits = _logits(wide_hidden[rows], wide, wide_bias)
                at, inside = places.of(rows, columns)
                picked[at] = logits.view(-1)[inside]
                _add_exponentials(logits, largest[rows], total[rows], plan.temperatures)
        logsumexp = largest + torch.log(total)
        picked = picked.view(ids.shape).masked_fill_(~mask, 0.0)
        ctx.save_for_backward(hidden, weight, bias, ids, mask, logsumexp)
        ctx.plan = plan
        return picked, logsumexp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, grad_logsumexp: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, mask, logsumexp = ctx.saved_tensors
        dtype, plan = logsumexp.dtype, ctx.plan
        wide_hidden = hidden.to(dtype)
        grad_hidden = torch.zeros_like(wide_hidden)
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        grad_bias = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
        grad_picked = grad_picked.masked_fill(~mask, 0.0).flatten()
        places = _Places(ids, plan)
        for columns, row_parts in plan.parts(hidden.shape[0]):
            wide = weight[columns].to(dtype)
            wide_bias = None if bias is None else bias[columns].to(dtype)
            for rows in row_parts:
                logits = _logits(wide_hidden[rows], wide, wide_bias)
                grad_logits = _grad_logits(logits, logsumexp[rows], grad_logsumexp[rows], plan.temperatures)
                at, inside = places.of(rows, columns)
                grad_logits.view(-1).scatter_add_(0, inside, grad_picked[at])
                grad_hidden[rows].addmm_(grad_logits, wide)
                grad_weight[columns].addmm_(grad_logits.T, wide_hidden[rows])
                grad_bias[columns] += grad_logits.sum(0)
        bias_out = None if bias is None else grad_bias.to(bias.dtype)
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), bias_out, None, None, None


def _add_exponentials(logits: Tensor, largest: Tensor, total: Tensor, temperatures: tuple[float, ...]) -> None:
    """Take one tile into the running maximum and sum of exponentials [n, C]; overwrites `logits` last."""
    tile_largest = logits.amax(1)
    for c, t in enumerate(temperatures):
        now = torch.maximum(largest[:, c], tile_largest / t)
        last = c == len(temperatures) - 1
        scaled = logits if t == 1.0 and last else logits.div_(t) if last else logits / t
        total[:, c] = total[:, c] * torch.exp(largest[:, c] - now) + scaled.sub_(now[:, None]).exp_().sum(1)
        largest[:, c] = now


def _grad_logits(logits: Tensor, logsumexp: Tensor, upstream: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """[n, v]: sum over temperatures of upstream * softmax(logits / T) / T; overwrites `logits` when it can."""
    if len(temperatures) == 1:
        t = temperatures[0]
        if t != 1.0:
            logits.div_(t)
        return logits.sub_(logsumexp).exp_().mul_(upstream / t)
    total = torch.zeros_like(logits)
    for c, t in enumerate(temperatures):
        total += torch.exp(logits / t - logsumexp[:, c : c + 1]) * (upstream[:, c : c + 1] / t)
    return total
