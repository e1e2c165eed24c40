"""Head and mass decoupled: the chain rule of forward KL, with a temperature inside the head only."""

from __future__ import annotations

import torch
from torch import Tensor

from .events import log_head, log_of_mass
from .targets import Targets


def decoupled(picked: Tensor, logsumexp: Tensor, targets: Targets, temperature: float = 1.0) -> Tensor:
    """[N]: KL(Bernoulli(1 - rest) || Bernoulli(s(head))) + (1 - rest) * T^2 * KL(p_T in the head || s_T in the head).

    Nats. The mass is compared at T = 1; inside the head p_T = softmax(log-probability / T) and s_T = softmax(logit / T)
    are exact at any T without a stored rest mass (the decoupled top-K of LFM2, 2025). At T = 1 it is `forward_kl`.

    Args:
        picked: [N, S] logits of the support, untempered.
        logsumexp: [N], T = 1.
        targets: the N positions.
        temperature: T.
    """
    rest = targets.rest.to(picked.dtype)
    empty = ~targets.head_mask.any(1)
    outside = ~targets.head_mask
    # an empty head has no distribution: all of its columns are masked before and after the softmax
    log_p = log_head(targets, picked.dtype, temperature).masked_fill(outside, 0.0)
    head = (picked / temperature).masked_fill(outside & ~empty[:, None], float("-inf"))
    log_s = torch.log_softmax(head, 1).masked_fill(outside, 0.0)
    inside = (torch.exp(log_p).masked_fill(outside, 0.0) * (log_p - log_s)).sum(1)
    s_head = torch.exp((picked - logsumexp[:, None]).masked_fill(outside, float("-inf"))).sum(1)
    mass = (1 - rest) * (log_of_mass(1 - rest) - log_of_mass(s_head))
    mass = mass + rest * (log_of_mass(rest) - log_of_mass(1.0 - s_head))
    return mass + (1 - rest) * temperature**2 * inside
