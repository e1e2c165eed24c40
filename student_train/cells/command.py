"""The command layer: the one place where the past acts nonlinearly, solved for all times at once.

    h_t = (c h_{t-1} + n_t + R_n(h_{t-1})) / (d_t + R_d(h_{t-1}))        R: the recurrent synapses

Quasi-Newton with the leak as the diagonal Jacobian: freeze R at the last guess, scan, repeat. A sweep is a convex
combination whatever the guess, so no sweep can blow up; where the recurrent synapses have no cycle, depth + 1 sweeps
are exact. The number of sweeps is a constant: data never decide it.

The adjoint is the whole one, l = g + J^T l with the off-diagonal part of J, by the same number of reversed scans.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scan import linear_scan, reversed_scan
from .synapses import Drive, pull_back


def solve_command(
    drive: Drive, c: Tensor, n: Tensor, d: Tensor, initial: Tensor | None, keep: Tensor | None, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Command states h [B, T, C] and the residual of the sweeps [B, T, C] (not differentiable).

    c: [C]; n, d: [B, T, C]; initial: [B, C] or None (zeros); keep: [B, T] bool, False at segment starts, or None.
    """
    B, T, C = n.shape
    mask = None if keep is None else keep.unsqueeze(-1)
    first = n.new_zeros(B, 1, C) if initial is None else initial.unsqueeze(1)
    with torch.no_grad():
        h = n if T == 1 else _sweeps(drive, c, n, d, first, mask, sweeps)
        past = h[:, :-1]
    before = torch.cat([first, past], dim=1)
    if mask is not None:
        before = before * mask
    activation = drive.activation(before)
    num, den = drive.collect(activation)
    denominator = d + den
    h_new = (c * before + n + num) / denominator
    if T == 1:
        return h_new, torch.zeros_like(h_new)
    with torch.no_grad():
        residual = h_new - h
        decay, slope = c / denominator, drive.slope(activation)
        if mask is not None:
            decay, slope = decay * mask, slope * mask
    h_new = adjoint(h_new, decay, denominator.detach(), slope, drive.matrix.detach(), drive.source, sweeps)
    return h_new, residual


def _sweeps(drive: Drive, c: Tensor, n: Tensor, d: Tensor, first: Tensor, mask: Tensor | None, sweeps: int) -> Tensor:
    before = torch.zeros_like(first[:1])  # [1, 1, C]: the first guess is silence, the same at all times
    h = n
    for sweep in range(sweeps):
        if sweep:
            before = torch.cat([first, h[:, :-1]], dim=1)
            before = before if mask is None else before * mask
        num, den = drive.collect(drive.activation(before))
        denominator = d + den
        a = c / denominator
        a = a if mask is None else a * mask
        h = linear_scan(a, (n + num) / denominator, first.squeeze(1))
    return h


class _Adjoint(torch.autograd.Function):
    """Identity on h; adds to the gradient that reaches h_t from outside what came through all later steps."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        decay: Tensor,
        denominator: Tensor,
        slope: Tensor,
        matrix: Tensor,
        source: Tensor | None,
        sweeps: int,
    ) -> Tensor:
        ctx.sweeps = sweeps
        ctx.save_for_backward(h, decay, denominator, slope, matrix, source)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, decay, denominator, slope, matrix, source = ctx.saved_tensors
        g = gradients[0]
        costate = reversed_scan(decay, g)
        for _ in range(ctx.sweeps - 1):
            load = costate / denominator
            off = pull_back((load, -h * load), slope, matrix, source, h.shape[-1])
            earlier = torch.cat([off[:, 1:], torch.zeros_like(off[:, :1])], dim=1)
            costate = reversed_scan(decay, g + earlier)
        return costate, None, None, None, None, None, None


adjoint = _Adjoint.apply
