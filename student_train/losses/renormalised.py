"""Renormalised top-K: the field's baseline, biased; here to be compared with, not to be used."""

from __future__ import annotations

import torch
from torch import Tensor

from .events import log_head
from .targets import Targets


def renormalised(picked: Tensor, logsumexp: Tensor, targets: Targets) -> Tensor:
    """[N]: sum over the head of p' (log p' - log s), nats, with p' = p / p(head) and s over the whole vocabulary.

    It teaches the student to put no mass outside the head: its minimum lies at s = p', and at s = p it is
    -log(1 - rest), not 0. An empty head teaches nothing: 0.

    Args:
        picked: [N, S] logits of the support.
        logsumexp: [N], T = 1.
        targets: the N positions.
    """
    outside = ~targets.head_mask
    log_p = log_head(targets, picked.dtype).masked_fill(outside, 0.0)
    log_s = (picked - logsumexp[:, None]).masked_fill(outside, 0.0)
    return (torch.exp(log_p).masked_fill(outside, 0.0) * (log_p - log_s)).sum(1)
