"""The command layer: the one place where the past acts nonlinearly, solved for all times at once.

    h_t = (c h_{t-1} + n_t + R_n(h_{t-1})) / (d_t + R_d(h_{t-1}))        R: the recurrent synapses

Quasi-Newton with the leak as the diagonal Jacobian: freeze R at the last guess, scan, repeat. A sweep is a convex
combination whatever the guess, so no sweep can blow up; where the recurrent synapses have no cycle, depth + 1 sweeps
are exact. The number of sweeps is a constant: data never decide it.

The adjoint is the whole one, l = g + J^T l with the off-diagonal part of J, by the same number of reversed scans.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.linear_scan import reversed_scan
from .leak import Leak
from .synapses import Drive, pull_back


class Command(NamedTuple):
    """The layer of C neurons, ready for one pass."""

    leak: Leak
    drive: Drive  # the recurrent synapses
    sweeps: int

    def solve(self, n: Tensor, d: Tensor, before: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """States h [B, T, C] and the residual of the sweeps [B, T, C] (not differentiable).

        n, d: [B, T, C]; before: [B, C] state before the first step; keep: [B, T] bool, False at segment starts.
        """
        single = n.shape[1] == 1
        keep = None if keep is None else keep.unsqueeze(-1)
        with torch.no_grad():
            h = n if single else self._sweep(n, d, before, keep)
        past = self._past(h, before, keep)
        activation = self.drive.activation(past)
        num, den = self.drive.collect(activation)
        denominator = d + den
        h_new = (self.leak.c * past + n + num) / denominator
        if single:  # the past is given: nothing to solve, and no later step to hear from
            return h_new, torch.zeros_like(h_new)
        with torch.no_grad():
            residual = h_new - h
            decay, slope = self.leak.c / denominator, self.drive.slope(activation)
            if keep is not None:
                decay, slope = decay * keep, slope * keep
        matrix, source = self.drive.matrix.detach(), self.drive.source
        return adjoint(h_new, decay, denominator.detach(), slope, matrix, source, self.sweeps), residual

    def _past(self, h: Tensor, before: Tensor, keep: Tensor | None) -> Tensor:
        """[B, T, C] the state that each step starts from."""
        past = torch.cat([before.unsqueeze(1), h[:, :-1]], dim=1)
        return past if keep is None else torch.where(keep, past, self.leak.start)

    def _sweep(self, n: Tensor, d: Tensor, before: Tensor, keep: Tensor | None) -> Tensor:
        past = self.leak.start.view(1, 1, -1)  # the first guess: at rest, at all times
        h = n
        for sweep in range(self.sweeps):
            if sweep:
                past = self._past(h, before, keep)
            num, den = self.drive.collect(self.drive.activation(past))
            h = self.leak.scan(n + num, d + den, before, keep)
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
