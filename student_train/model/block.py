"""The two kinds of blocks, both pre-norm residual: attention + SwiGLU, and LTC-NCP + SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cells.ltc_ncp import LtcNcp
from ..config import CellConfig, StudentConfig
from .attention import Attention, Sight
from .conv import CausalConv, LayerState
from .segments import Segments

NORM_EPS = 1e-6


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = max(1, round(width * ratio))
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        y: Tensor = self.down(nn.functional.silu(gate) * value)
        return y


class EncoderBlock(nn.Module):
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.mixer_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mixer = Attention(width, config.encoder.heads, config.encoder.window)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width, config.mlp_ratio)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        return self.mixer.init_state(batch, dtype, device)

    def forward(
        self, x: Tensor, sight: Sight, segments: Segments, state: LayerState | None, carry: bool
    ) -> tuple[Tensor, LayerState]:
        mixed, after = self.mixer(self.mixer_norm(x), sight, segments, state, carry)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), after


class LiquidMixer(nn.Module):
    """Linear to (u, z) -> causal convolution of both -> LTC-NCP(u) -> RMSNorm * silu(z) -> Linear.

    The gate passes the convolution too: the few tokens before are its business, not the neurons'.
    """

    def __init__(self, width: int, kernel: int, cell: CellConfig) -> None:
        super().__init__()
        self.cell = LtcNcp(width, cell)
        self.split = [width, self.cell.motor]
        self.into = nn.Linear(width, sum(self.split), bias=False)
        self.conv = CausalConv(sum(self.split), kernel)
        self.norm = nn.RMSNorm(self.cell.motor, eps=NORM_EPS)
        self.out = nn.Linear(self.cell.motor, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        wide = torch.promote_types(dtype, torch.float32)
        neurons = self.cell.start.detach().to(device, wide).repeat(batch, 1)
        return {**self.conv.init_state(batch, dtype, device), "neurons": neurons}

    def forward(self, x: Tensor, segments: Segments, state: LayerState | None) -> tuple[Tensor, LayerState]:
        mixed, after = self.conv(self.into(x), segments, state)
        u, z = mixed.split(self.split, dim=-1)
        v, neurons = self.cell(u, None if state is None else state["neurons"], segments.keep, segments.last)
        y = self.out(self.norm(v.to(x.dtype)) * nn.functional.silu(z))
        return y, {**after, "neurons": neurons}


class LiquidBlock(nn.Module):
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.mixer_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mixer = LiquidMixer(width, config.conv_kernel, config.cell)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width, config.mlp_ratio)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        return self.mixer.init_state(batch, dtype, device)

    def forward(self, x: Tensor, segments: Segments, state: LayerState | None) -> tuple[Tensor, LayerState]:
        mixed, after = self.mixer(self.mixer_norm(x), segments, state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), after
