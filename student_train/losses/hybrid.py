"""The unbiased member of the family: cross-entropy to head and tail draws, minus the stored entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from .forward_kl import forward_kl
from .targets import Targets


def hybrid(picked: Tensor, logsumexp: Tensor, targets: Targets) -> Tensor:
    """[N]: -sum over the support of q log s, minus the teacher's entropy, nats.

    q = (1 - rest) * softmax(head) + rest * counts / m. Over the random tail draws its expectation is the full
    KL(p || s), and so is that of its gradient. At one position it may be negative; its mean is zero at equality.
    Where nothing was drawn although mass is left, the rest can only be a bucket: there it is `forward_kl`.

    Args:
        picked: [N, S] logits of the support.
        logsumexp: [N], T = 1.
        targets: the N positions.
    """
    log_s = (picked - logsumexp[:, None]).masked_fill(~targets.mask, 0.0)
    unbiased = -(targets.q.to(picked.dtype) * log_s).sum(1) - targets.entropy.to(picked.dtype)
    bucket = (targets.rest > 0) & ~(targets.mask & ~targets.head_mask).any(1)
    return torch.where(bucket, forward_kl(picked, logsumexp, targets), unbiased)
