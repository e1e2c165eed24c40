"""Sliding-window attention with rotary positions: the student's front end. Constant memory when decoding.

A query sees the keys of its segment at most `window` - 1 tokens back, itself included; tokens of one prompt run see
each other both ways within that distance. The state is the last `window` - 1 keys and values, keys not yet rotated:
positions are counted from the oldest key in sight, so they never grow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .conv import LayerState
from .segments import Segments, last_steps


class Sight(NamedTuple):
    """What all attention layers of one forward pass share. P = window - 1 carried keys, then T own."""

    mask: Tensor  # [B or 1, 1, T, P + T] bool, or P = 0 when nothing is carried
    cos: Tensor  # [P + T, head width / 2]
    sin: Tensor


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        width = self.out.in_features
        empty = torch.zeros(batch, self.window - 1, 2 * width, dtype=dtype, device=device)
        return {"keys_values": empty, "seen": torch.zeros(batch, self.window - 1, dtype=torch.bool, device=device)}

    def forward(
        self, x: Tensor, sight: Sight, segments: Segments, state: LayerState | None, carry: bool
    ) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> y [B, T, D], state (the given one unless `carry`)."""
        B, T, D = x.shape
        q, kv = self.qkv(x).split([D, 2 * D], dim=-1)
        line = kv if state is None else torch.cat([state["keys_values"].to(kv.dtype), kv], dim=1)
        past = line.shape[1] - T
        k, v = line.view(B, past + T, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = _rotate(q.view(B, T, self.heads, -1).transpose(1, 2), sight.cos[past:], sight.sin[past:])
        y = nn.functional.scaled_dot_product_attention(q, _rotate(k, sight.cos, sight.sin), v, attn_mask=sight.mask)
        y = self.out(y.transpose(1, 2).reshape(B, T, D))
        if not carry:
            return y, state or {}
        if state is None:
            state = self.init_state(B, kv.dtype, kv.device)
            line = torch.cat([state["keys_values"], kv], dim=1)
        seen = torch.cat([state["seen"], state["seen"].new_ones(B, T)], dim=1)
        kept, alive = last_steps(line, self.window - 1, segments)
        was_seen, _ = last_steps(seen, self.window - 1, segments)
        return y, {"keys_values": kept.contiguous(), "seen": was_seen & alive}


def look(x: Tensor, head_width: int, window: int, segments: Segments, seen: Tensor | None) -> Sight:
    """Mask and rotations for T tokens x [B, T, ..] after the keys that `seen` [B, P] marks (None: P = 0)."""
    T, past = x.shape[1], 0 if seen is None else seen.shape[1]
    key = torch.arange(past + T, device=x.device)
    distance = key[past:, None] - key  # [T, P + T], positive: the key is earlier
    mask = ((distance >= 0) & (distance < window)).unsqueeze(0)
    if segments.run_ids is not None:
        runs = nn.functional.pad(segments.run_ids, (past, 0), value=-1)
        together = (runs[:, past:, None] == runs[:, None, :]) & (runs[:, None, :] >= 0)
        mask = mask | (together & (distance.abs() < window))
    if segments.age is not None:
        start = key[past:] - segments.age  # [B, T] index of the segment's first key
        begins = nn.functional.pad(start, (past, 0), value=-(1 << 40)) if past else start
        same = key >= start.unsqueeze(-1)
        same &= begins.unsqueeze(1) <= key[past:, None]  # the key's segment must have begun, for looks ahead
        mask = mask & same
    if seen is not None:
        mask = mask & nn.functional.pad(seen, (0, T), value=True).unsqueeze(1)
    frequency = 10_000.0 ** (-torch.arange(0, head_width, 2, device=x.device, dtype=torch.float64) / head_width)
    angle = key.to(torch.float64)[:, None] * frequency
    dtype = torch.promote_types(x.dtype, torch.float32)
    return Sight(mask.unsqueeze(1), angle.cos().to(dtype), angle.sin().to(dtype))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of x [.., L, width] by the angles [L, width / 2]."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)
