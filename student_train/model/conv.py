"""Causal depthwise convolution along time, inside segments, with the last inputs as its state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .segments import Segments, last_steps

LayerState = dict[str, Tensor]


class CausalConv(nn.Module):
    """y_t = bias + sum_k weight[k] * x_{t-k}, k < kernel, inside the segment of t."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, width))
        self.bias = nn.Parameter(torch.zeros(width))
        bound = 1 / math.sqrt(kernel)
        nn.init.uniform_(self.weight, -bound, bound)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        return {"inputs": torch.zeros(batch, len(self.weight) - 1, self.weight.shape[1], dtype=dtype, device=device)}

    def forward(self, x: Tensor, segments: Segments, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """x [B, T, width] -> y of that shape, state."""
        back, T = len(self.weight) - 1, x.shape[1]
        carried = self.init_state(len(x), x.dtype, x.device) if state is None else state
        line = torch.cat([carried["inputs"].to(x.dtype), x], dim=1)
        y = torch.addcmul(self.bias, self.weight[0], x)
        for k in range(1, back + 1):
            shifted = line[:, back - k : back - k + T]
            if segments.age is not None:
                shifted = shifted * (segments.age >= k).unsqueeze(-1)
            y = torch.addcmul(y, self.weight[k], shifted)
        if not back:
            return y, carried
        kept, alive = last_steps(line, back, segments)
        return y, {"inputs": kept * alive.unsqueeze(-1)}
