"""One bundle of conductance synapses between two layers of neurons: parameters, constraints and their two sums.

A synapse i -> j contributes w_ij s(v_i) to the denominator and w_ij s(v_i) E_ij to the numerator of the fused LTC step,
with s(v) = sigmoid(sigma (v - mu)). Not a cell: no leak, no time.

Every synapse is one entry of flat vectors; w = softplus(raw), E = polarity * softplus(raw), sigma = 8 sigmoid(raw), so
signs and ranges hold whatever the optimiser does. `per_source` ties (mu, sigma) to the source neuron of the bundle;
`per_edge` gives each synapse its own, as ncps does, by treating each synapse as a source of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIGMA_MAX = 8.0


class Drive(NamedTuple):
    """Synapses ready for use in one pass. J targets; I sources (or synapses, per edge)."""

    matrix: Tensor  # [I, 2 J]: w E beside w, zero where there is no synapse
    sigma: Tensor  # [I]
    mu: Tensor  # [I]
    source: Tensor | None  # [I] neuron behind each row, None: the rows are the neurons

    def activation(self, v: Tensor) -> Tensor:
        """s(v) [.., I] of presynaptic states v [.., sources]."""
        if self.source is not None:
            v = v.index_select(-1, self.source)
        return torch.sigmoid(self.sigma * (v - self.mu))

    def collect(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator [.., J] in the dtype of the states; the product itself in the matrix's dtype."""
        sums = (activation.to(self.matrix.dtype) @ self.matrix).to(activation.dtype)
        numerator, denominator = sums.chunk(2, dim=-1)
        return numerator, denominator

    def slope(self, activation: Tensor) -> Tensor:
        """ds/dv [.., I] at an activation s [.., I]."""
        return activation * (1 - activation) * self.sigma


def pull_back(
    grads: tuple[Tensor, Tensor], slope: Tensor, matrix: Tensor, source: Tensor | None, sources: int
) -> Tensor:
    """Gradient [.., sources] in v of `collect(activation(v))`, given those [.., J] of numerator and denominator."""
    grad = (torch.cat(grads, dim=-1).to(matrix.dtype) @ matrix.mT).to(slope.dtype) * slope
    if source is None:
        return grad
    return grad.new_zeros(*grad.shape[:-1], sources).index_add_(-1, source, grad)


class Synapses(nn.Module):
    """The synapses of `polarity` [sources, targets] (-1, 0, +1)."""

    def __init__(self, polarity: NDArray[np.int8], *, per_edge: bool, fan_in: NDArray[np.int64]) -> None:
        """`fan_in` [targets]: all synapses ending on a target, of other bundles too; sets the scale of w."""
        super().__init__()
        self.shape = polarity.shape
        self.per_edge = per_edge
        source, target = np.nonzero(polarity)
        rows = len(source) if per_edge else self.shape[0]
        row = np.arange(rows) if per_edge else source
        self.rows = rows
        self.fan_in = torch.from_numpy(fan_in[target])
        for name, values in {"source": source, "cell": row * self.shape[1] + target}.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.int64)), persistent=False)
        self.register_buffer("excites", torch.from_numpy(polarity[source, target] > 0), persistent=False)
        self.raw_weight = nn.Parameter(torch.empty(len(source)))
        self.raw_reversal = nn.Parameter(torch.empty(len(source)))
        self.raw_sigma = nn.Parameter(torch.empty(rows))
        self.mu = nn.Parameter(torch.empty(rows))

    source: Tensor
    cell: Tensor
    excites: Tensor
    held: Drive | None = None

    def hold(self) -> None:
        """Keep the drive of the present weights for all passes to come, until `release`: for decoding."""
        self.release()
        self.held = self(torch.promote_types(self.raw_weight.dtype, torch.float32))

    def release(self) -> None:
        self.held = None

    @torch.no_grad()
    def reset_parameters(self, sigma: tuple[float, float], mu_scatter: float) -> None:
        """w ~ U(.5, 1.5) / fan-in, |E| = 3, sigma ~ U(sigma), mu ~ N(0, mu_scatter), to be moved with `centre`."""
        weight = torch.empty_like(self.raw_weight).uniform_(0.5, 1.5) / self.fan_in
        self.raw_weight.copy_(softplus_inverse(weight))
        self.raw_reversal.copy_(softplus_inverse(torch.full_like(self.raw_reversal, 3.0)))
        self.raw_sigma.copy_(torch.logit(torch.empty_like(self.raw_sigma).uniform_(*sigma) / SIGMA_MAX))
        self.mu.normal_(0.0, mu_scatter)

    @torch.no_grad()
    def centre(self, v: Tensor) -> None:
        """Move every sigmoid's middle by the resting state v [sources] of its source."""
        self.mu.add_(v[self.source] if self.per_edge else v)

    def forward(self, wide: torch.dtype) -> Drive:
        """The drive, its vectors in dtype `wide` and its matrix in the dtype of the parameters."""
        if self.held is not None and self.held.mu.dtype == wide:
            return self.held
        weight = nn.functional.softplus(self.raw_weight.to(wide))
        reversal = nn.functional.softplus(self.raw_reversal.to(wide))
        signed = weight * torch.where(self.excites, reversal, -reversal)
        zeros = weight.new_zeros(self.rows * self.shape[1])
        halves = [zeros.scatter(0, self.cell, x).view(self.rows, self.shape[1]) for x in (signed, weight)]
        return Drive(
            torch.cat(halves, dim=1).to(self.raw_weight.dtype),
            SIGMA_MAX * torch.sigmoid(self.raw_sigma.to(wide)),
            self.mu.to(wide),
            self.source if self.per_edge else None,
        )


def softplus_inverse(x: Tensor) -> Tensor:
    """y with softplus(y) = x > 0, without overflow for large x."""
    return x + torch.log(-torch.expm1(-x))
