"""Where segments, prompt runs and padding lie in one batch, worked out once a forward pass for all layers.

Plain tensors in a named tuple, so that DeepSpeed's hooks can look through it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FOREVER = 1 << 30


class Segments(NamedTuple):
    """B rows of T tokens, right-padded."""

    keep: Tensor | None  # [B, T] bool, False where a segment starts; None: none starts
    age: (
        Tensor | None
    )  # [B, T] int64, tokens since the segment's start; FOREVER and more where it began before this call
    last: Tensor | None  # [B] int64, index of the last real token, -1: none; None: T - 1
    run_ids: Tensor | None  # [B, T], tokens of one id >= 0 see each other both ways; None: causal


def find_segments(length: int, reset: Tensor | None, run_ids: Tensor | None, lengths: Tensor | None) -> Segments:
    """See `Segments`. reset: [B, T] bool; lengths: [B]; `length` is T."""
    last = None if lengths is None else lengths - 1
    if reset is None:
        return Segments(None, None, last, run_ids)
    index = torch.arange(length, device=reset.device)
    start = torch.where(reset, index, -FOREVER).cummax(dim=1).values
    return Segments(~reset, index - start, last, run_ids)


def last_steps(x: Tensor, count: int, segments: Segments) -> tuple[Tensor, Tensor]:
    """The `count` steps that end with each row's last real token, and which of them are of its segment.

    x: [B, count + T, ..], a carried buffer of `count` steps before the T new ones -> [B, count, ..], bool [B, count].
    """
    B, T = x.shape[0], x.shape[1] - count
    if segments.last is None and segments.age is None:  # decoding: just the end, nothing to look up
        return x[:, T:], torch.ones(B, count, dtype=torch.bool, device=x.device)
    last = segments.last if segments.last is not None else torch.full((B,), T - 1, device=x.device)
    back = torch.arange(count - 1, -1, -1, device=x.device)  # steps before the last real token
    index = last.unsqueeze(1) + count - back
    shape = (B, count) + (1,) * (x.dim() - 2)
    taken = x.take_along_dim(index.view(shape), dim=1)
    if segments.age is None:
        return taken, torch.ones_like(index, dtype=torch.bool)
    age = segments.age.take_along_dim(last.clamp(min=0).unsqueeze(1), dim=1)
    return taken, (back <= age) | (last < 0).unsqueeze(1)
