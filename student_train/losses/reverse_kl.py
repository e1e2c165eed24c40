"""Reverse KL on the events {head ids, rest}: the student pays for mass where the teacher has none."""

from __future__ import annotations

from torch import Tensor

from .events import head_and_rest
from .targets import Targets


def reverse_kl(picked: Tensor, logsumexp: Tensor, targets: Targets, temperature: float = 1.0) -> Tensor:
    """[N]: T^2 * sum over the events of s (log s - log p), nats, both at temperature T.

    Never above T^2 times the full KL(s || p), zero at equality. A rest of 0 counts as the floor of
    `log_of_mass`, so mass that the student puts there costs it a finite amount.

    Args:
        picked: [N, S] logits of the support, untempered.
        logsumexp: [N] at `temperature`.
        targets: the N positions.
        temperature: T; other than 1 it needs the stored rest mass of that temperature.
    """
    events = head_and_rest(picked, logsumexp, targets, temperature)
    return temperature**2 * (events.s * (events.log_s - events.log_p)).sum(1)
