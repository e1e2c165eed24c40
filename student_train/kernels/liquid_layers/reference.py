"""The layers step by step in plain torch; autograd gives the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Fans, Neurons, Sigmoids, padded


def activate(x: Tensor, sigmoids: Sigmoids, dtype: torch.dtype) -> Tensor:
    """[.., P] in `dtype`, zero beyond the sources."""
    s = torch.sigmoid(sigmoids.sigma * (x.to(sigmoids.sigma.dtype) - sigmoids.mu))
    return torch.nn.functional.pad(s, (0, padded(s.shape[-1]) - s.shape[-1])).to(dtype)


def command_layer(
    sums: Tensor,
    neurons: Neurons,
    before: Tensor,
    keep: Tensor | None,
    following: Sigmoids | None,
    recurrent: tuple[Sigmoids, Tensor, Fans | None] | None,
) -> tuple[Tensor, Tensor | None]:
    """States [B, T, U] and the activations for the next bundle. `recurrent`: its sigmoids and matrix [C, 2 C]."""
    U, P = before.shape[1], sums.shape[-1] // 2
    num, den = sums[..., :U].to(before.dtype), sums[..., P : P + U].to(before.dtype)
    v, states = before, []
    for t in range(sums.shape[1]):
        if keep is not None:
            v = torch.where(keep[:, t, None], v, neurons.start)
        n, d = num[:, t] + neurons.pull, den[:, t] + neurons.load
        if recurrent is not None:
            inner = torch.sigmoid(recurrent[0].sigma * (v - recurrent[0].mu)) @ recurrent[1].to(v.dtype)
            n, d = n + inner[:, :U], d + inner[:, U:]
        v = (neurons.c * v + n) / d
        states.append(v)
    whole = torch.stack(states, dim=1)
    return whole, None if following is None else activate(whole, following, sums.dtype)


def leaky_layer(
    sums: Tensor, neurons: Neurons, before: Tensor, keep: Tensor | None, following: Sigmoids | None
) -> tuple[Tensor, Tensor | None]:
    """As `command_layer`, without recurrent synapses."""
    return command_layer(sums, neurons, before, keep, following, None)
