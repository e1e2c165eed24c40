"""The off-by-one probe: does the distribution stored at position i predict token i + 1, and not token i or i + 2?

Hashes and masses cannot see a dump whose captures are one token off; the text itself can. It decides nothing on little
data or for a teacher that predicts nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .flat import Flat, entries

ENOUGH = 2_000
"""Positions below which the probe stays silent."""
_SIGMAS = 4.0
_FAR_BETTER = 1.5
_COPYING = 0.95
"""An untrained teacher with tied embeddings puts the token it just read first, nearly always; text never does."""


class OffByOne:
    """Sums over batches of the probability given to the tokens around each scored position."""

    def __init__(self) -> None:
        self._count = 0
        self._copies = 0
        self._sums = np.zeros(4)  # token i, i + 1, i + 2, and the label of some other position
        self._square_sums = np.zeros(4)  # of the differences from i + 1

    def add(self, flat: Flat) -> None:
        """Take one batch; positions next to a segment's end are left out."""
        begins = np.zeros(len(flat.tokens) + 2, np.bool_)
        tokens, starts = flat.columns.lists["input_ids"], flat.columns.lists["segment_starts"]
        begins[tokens.offsets[np.repeat(np.arange(len(starts.lengths)), starts.lengths)] + starts.values] = True
        begins[tokens.offsets] = True
        usable = ~begins[flat.token + 2]
        if not usable.any():
            return
        at = np.minimum(flat.token, len(flat.tokens) - 3)
        stranger = np.roll(flat.labels, flat.num_positions // 2)
        targets = np.stack([flat.tokens[at], flat.tokens[at + 1], flat.tokens[at + 2], stranger])
        given = _probabilities(flat, targets)[:, usable]  # [4, usable]
        self._count += given.shape[1]
        self._sums += given.sum(axis=1)
        self._square_sums += ((given - given[1]) ** 2).sum(axis=1)
        head = entries(flat.column("head_lengths"))
        best = flat.column("head_ids") == flat.tokens[flat.token][head.owner]
        self._copies += int(head.any(best & (head.place == 0))[usable].sum())

    def verdict(self) -> tuple[str, str]:
        """("ok" | "failed" | "inconclusive", why)."""
        if self._count < ENOUGH:
            return "inconclusive", f"{self._count} usable positions, {ENOUGH} needed"
        before, label, after, chance = self._sums / self._count
        figures = f"probability of token i {before:.4f}, i + 1 {label:.4f}, i + 2 {after:.4f}, by chance {chance:.4f}"
        rival = 0 if before >= after else 2
        if self._beats(rival, 1):
            if rival == 0 and self._copies >= _COPYING * self._count:
                return "inconclusive", f"the teacher only repeats what it read, as untrained ones do ({figures})"
            return (
                "failed",
                f"position i predicts token {'i' if rival == 0 else 'i + 2'} better than its label ({figures})",
            )
        if not self._beats(1, 3):
            return "inconclusive", f"labels do not beat chance, as with random weights ({figures})"
        if label < _FAR_BETTER * max(before, after):
            return "inconclusive", f"labels are hardly better than their neighbours ({figures})"
        return "ok", figures

    def _beats(self, better: int, worse: int) -> bool:
        """Whether a mean is above another by several standard errors of their paired difference."""
        assert 1 in (better, worse)
        mean = (self._sums[better] - self._sums[worse]) / self._count
        other = worse if better == 1 else better
        variance = self._square_sums[other] / self._count - mean**2
        return bool(mean > _SIGMAS * np.sqrt(max(variance, 0.0) / self._count))


def _probabilities(flat: Flat, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """[targets, N] what the stored target gives to the ids `targets` [targets, N]."""
    head, tail = entries(flat.column("head_lengths")), entries(flat.column("tail_lengths"))
    counts = flat.column("tail_counts").astype(np.float64)
    rest = flat.column("rest_mass").reshape(flat.num_positions, -1)[:, 0].astype(np.float64)
    drawn = np.maximum(tail.sum(counts), 1.0)
    in_head = np.exp(flat.column("head_logprobs").astype(np.float64))
    in_tail = (rest / drawn)[tail.owner] * counts
    return np.stack(
        [
            head.sum(in_head * (flat.column("head_ids") == target[head.owner]))
            + tail.sum(in_tail * (flat.column("tail_ids") == target[tail.owner]))
            for target in targets
        ]
    )
