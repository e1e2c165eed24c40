"""What a neuron keeps of its own past: the leak, and the layers in which that is all the past there is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..kernels.linear_scan import linear_scan


class Leak(NamedTuple):
    """A layer's own dynamics: v_t = (c v_{t-1} + n_t) / d_t, with v_{t-1} replaced by `start` at a segment start."""

    c: Tensor  # [U]
    start: Tensor  # [U]

    def scan(self, n: Tensor, d: Tensor, before: Tensor, keep: Tensor | None) -> Tensor:
        """v [B, T, U]. n, d: [B, T, U]; before: [B, U] state before the first step; keep: [B, T, 1] bool or None."""
        a = self.c / d
        if keep is not None:
            n = n + (self.c * self.start) * ~keep
            a = a * keep
        return linear_scan(a, n / d, before)


def linear_layer(leak: Leak, n: Tensor, d: Tensor, before: Tensor, keep: Tensor | None) -> Tensor:
    """States [B, T, U] of a layer without recurrent synapses, exactly. keep: [B, T] bool or None."""
    return leak.scan(n, d, before, None if keep is None else keep.unsqueeze(-1))
