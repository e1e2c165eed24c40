"""Forward KL on the events {head ids, rest}: a lower bound of the full divergence, zero at equality."""

from __future__ import annotations

import torch
from torch import Tensor

from .bucket import log_rest
from .targets import Targets


def forward_kl(picked: Tensor, logsumexp: Tensor, targets: Targets) -> Tensor:
    """[N]: sum over the head of p (log p - log s) + rest (log rest - log(1 - s(head))), nats.

    p = (1 - rest) * softmax(head log-probabilities) is the teacher, s the student. By the data-processing inequality
    it never exceeds the full KL(p || s); it sees nothing of how the rest is spread.

    Args:
        picked: [N, S] logits of the support.
        logsumexp: [N], T = 1.
        targets: the N positions.
    """
    rest = targets.rest.to(picked.dtype)
    head = targets.logprobs.to(picked.dtype).masked_fill(~targets.head_mask, float("-inf"))
    log_p = (head - head.logsumexp(1, keepdim=True) + torch.log1p(-rest.clamp_max(1 - 1e-7))[:, None]).masked_fill(
        ~targets.head_mask, 0.0
    )
    p = torch.exp(log_p).masked_fill(~targets.head_mask, 0.0)
    log_s = (picked - logsumexp[:, None]).masked_fill(~targets.head_mask, 0.0)
    on_head = (p * (log_p - log_s)).sum(1)
    return on_head + torch.xlogy(rest, rest) - rest * log_rest(picked, logsumexp, targets.head_mask)
