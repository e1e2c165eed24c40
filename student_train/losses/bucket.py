"""The student's mass outside the head, in logs: what every loss with a rest bucket needs."""

from __future__ import annotations

import torch
from torch import Tensor


def log_rest(picked: Tensor, logsumexp: Tensor, head_mask: Tensor) -> Tensor:
    """[N]: log(1 - sum of the student's probabilities over the head).

    The mass is floored at 8 machine epsilons (1e-6 in float32): below, it is the rounding of the normaliser, and its
    gradient would be noise. An empty head leaves everything outside: 0.

    Args:
        picked: [N, S] logits of the support.
        logsumexp: [N], T = 1.
        head_mask: bool [N, S].
    """
    head = torch.exp((picked - logsumexp[:, None]).masked_fill(~head_mask, float("-inf"))).sum(1)
    return torch.log((1.0 - head).clamp_min(8 * torch.finfo(picked.dtype).eps))
