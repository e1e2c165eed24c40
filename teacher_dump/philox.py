"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on torch integers.

A counter-based generator: the number belongs to its counter, not to a stream, so the uniforms of a position are the
same whatever batch, order or device it is scored in. Not a general random module: the tail draws are its one user.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

Key = tuple[int, int]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10


def key_of(corpus_fingerprint: str, seed: int) -> Key:
    """The generator's key for one corpus and seed: two 32-bit words of a sha256."""
    block = hashlib.sha256(f"{corpus_fingerprint}\n{seed}".encode()).digest()
    return int.from_bytes(block[:4], "little"), int.from_bytes(block[4:8], "little")


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt counters. Words are int64 tensors of one shape holding 32 unsigned bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit product wraps into the sign; shifting and masking recovers both halves all the same.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


@dataclass(frozen=True, eq=False)
class Addresses:
    """Where N positions lie: the whole identity of their uniforms."""

    key: Key
    """Of corpus and seed, see `key_of`."""
    row_ids: Tensor
    """int64 [N]"""
    positions: Tensor
    """int64 [N], inside the row"""

    def __getitem__(self, some: slice) -> Addresses:
        return Addresses(self.key, self.row_ids[some], self.positions[some])

    def to(self, device: torch.device) -> Addresses:
        """The same addresses on another device."""
        return Addresses(self.key, self.row_ids.to(device), self.positions.to(device))

    def uniforms(self, draws: int) -> Tensor:
        """float64 [N, draws] in [0, 1) with 53 random bits each; asking for more leaves the first ones as they were."""
        blocks = torch.arange(-(-draws // 2), device=self.row_ids.device)
        shape = (len(self.row_ids), len(blocks))
        counter = (
            blocks.expand(shape),
            (self.positions & _LOW)[:, None].expand(shape),
            (self.row_ids & _LOW)[:, None].expand(shape),
            ((self.row_ids >> 32) & _LOW)[:, None].expand(shape),
        )
        a, b, c, d = philox4x32(counter, self.key)
        pairs = torch.stack((_to_unit(a, b), _to_unit(c, d)), dim=-1)
        return pairs.flatten(1)[:, :draws]


def _to_unit(high: Tensor, low: Tensor) -> Tensor:
    return (((high >> 5) << 26) + (low >> 6)).double() * 2.0**-53
