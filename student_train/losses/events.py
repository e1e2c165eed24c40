"""Teacher and student on the events {head ids, rest} (and, if asked, the label): what the event family is made of.

Coarsening the vocabulary into events never raises a divergence (data-processing inequality), so every loss on events is
a lower bound of the full one, zero at equality. How the rest is spread over its ids is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .targets import Targets


@dataclass(frozen=True, eq=False)
class Events:
    """Log-probabilities of E events, the rest last; absent events have probability 0 and logs 0 on both sides."""

    log_p: Tensor  # [N, E] teacher
    log_s: Tensor  # [N, E] student
    present: Tensor  # bool [N, E]

    @property
    def p(self) -> Tensor:
        """[N, E]"""
        return torch.exp(self.log_p).masked_fill(~self.present, 0.0)

    @property
    def s(self) -> Tensor:
        """[N, E]"""
        return torch.exp(self.log_s).masked_fill(~self.present, 0.0)


def log_head(targets: Targets, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
    """[N, S]: the teacher's log-probabilities inside the head, which sum to one there; -inf elsewhere."""
    head = (targets.logprobs.to(dtype) / temperature).masked_fill(~targets.head_mask, float("-inf"))
    return head - head.logsumexp(1, keepdim=True)


def log_of_mass(mass: Tensor) -> Tensor:
    """log(mass), floored at 8 machine epsilons (1e-6 in float32).

    Below, it is the rounding of the normaliser, and its gradient would be noise.
    """
    return torch.log(mass.clamp_min(8 * torch.finfo(mass.dtype).eps))


def head_and_rest(picked: Tensor, logsumexp: Tensor, targets: Targets, temperature: float = 1.0) -> Events:
    """Events {head ids, rest} at a temperature: p = (1 - rest_T) * softmax over the head of (log-probability / T).

    Args:
        picked: [N, S] logits of the support.
        logsumexp: [N] at `temperature`.
        targets: the N positions; their `tempered_rest` is at `temperature` unless that is 1.
        temperature: T.
    """
    rest = (targets.rest if temperature == 1.0 else targets.tempered_rest).to(picked.dtype)
    log_p = log_head(targets, picked.dtype, temperature) + torch.log1p(-rest.clamp_max(1 - 1e-7))[:, None]
    return _with_rest(log_p, picked / temperature - logsumexp[:, None], targets.head_mask, rest)


def head_label_and_rest(picked: Tensor, label_logit: Tensor, logsumexp: Tensor, targets: Targets) -> Events:
    """Events {head ids, label, rest} at T = 1; where the label is in the head it is no further event."""
    dtype = picked.dtype
    outside = ~(targets.head_mask & (targets.ids == targets.labels[:, None])).any(1)
    log_p_label = targets.label_logprob.to(dtype)
    rest = targets.rest.to(dtype)
    log_p = log_head(targets, dtype) + torch.log1p(-rest.clamp_max(1 - 1e-7))[:, None]
    rest = (rest - torch.exp(log_p_label).masked_fill(~outside, 0.0)).clamp_min(0.0)
    return _with_rest(
        torch.cat([log_p, log_p_label[:, None]], 1),
        torch.cat([picked, label_logit[:, None]], 1) - logsumexp[:, None],
        torch.cat([targets.head_mask, outside[:, None]], 1),
        rest,
    )


def _with_rest(log_p: Tensor, log_s: Tensor, present: Tensor, rest: Tensor) -> Events:
    log_s = log_s.masked_fill(~present, float("-inf"))
    student_rest = log_of_mass(1.0 - torch.exp(log_s).sum(1))
    return Events(
        torch.cat([log_p.masked_fill(~present, 0.0), log_of_mass(rest)[:, None]], 1),
        torch.cat([log_s.masked_fill(~present, 0.0), student_rest[:, None]], 1),
        torch.cat([present, torch.ones_like(present[:, :1])], 1),
    )
