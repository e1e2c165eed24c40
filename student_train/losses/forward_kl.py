"""Forward KL on the events {head ids, rest}: a lower bound of the full divergence, zero at equality."""

from __future__ import annotations

from torch import Tensor

from .events import Events, head_and_rest
from .targets import Targets


def forward_kl(picked: Tensor, logsumexp: Tensor, targets: Targets, temperature: float = 1.0) -> Tensor:
    """[N]: T^2 * (sum over the head of p (log p - log s) + rest (log rest - log(1 - s(head)))), nats.

    p = (1 - rest) * softmax(head log-probabilities / T) is the teacher, s the student, both at temperature T. By the
    data-processing inequality it never exceeds T^2 times the full KL(p || s); it sees nothing of the rest's spread.
    T^2 keeps the size of the gradient (Hinton et al. 2015): for large T the value no longer depends on T.

    Args:
        picked: [N, S] logits of the support, untempered.
        logsumexp: [N] at `temperature`.
        targets: the N positions.
        temperature: T; other than 1 it needs the stored rest mass of that temperature.
    """
    return temperature**2 * kl(head_and_rest(picked, logsumexp, targets, temperature))


def kl(events: Events) -> Tensor:
    """[N]: sum over the events of p (log p - log s)."""
    return (events.p * (events.log_p - events.log_s)).sum(1)
