"""Generalised Jensen-Shannon divergence on the events {head ids, rest}."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .events import head_and_rest
from .targets import Targets


def jsd(picked: Tensor, logsumexp: Tensor, targets: Targets, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """[N]: T^2 * (beta * KL(p || m) + (1 - beta) * KL(s || m)) with m = beta * p + (1 - beta) * s, nats.

    The divergence of Agarwal et al. (2024): bounded, symmetric at beta = 1/2; divided by beta it tends to forward KL as
    beta goes to 0. Never above the full one, zero at equality.

    Args:
        picked: [N, S] logits of the support, untempered.
        logsumexp: [N] at `temperature`.
        targets: the N positions.
        temperature: T; other than 1 it needs the stored rest mass of that temperature.
        beta: share of the teacher in the mixture, in (0, 1).
    """
    events = head_and_rest(picked, logsumexp, targets, temperature)
    log_m = torch.logaddexp(events.log_p + math.log(beta), events.log_s + math.log1p(-beta))
    terms = beta * events.p * (events.log_p - log_m) + (1 - beta) * events.s * (events.log_s - log_m)
    return temperature**2 * terms.sum(1)
