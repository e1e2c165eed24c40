"""Forward KL where the corpus label is an event of its own, also when it lies outside the head."""

from __future__ import annotations

from torch import Tensor

from .events import head_label_and_rest
from .forward_kl import kl
from .targets import Targets


def label_residual(picked: Tensor, label_logit: Tensor, logsumexp: Tensor, targets: Targets) -> Tensor:
    """[N]: KL(p || s) on the events {head ids, label, rest}, nats, T = 1.

    The teacher's mass on the label is stored at every position, so the label leaves the rest bucket at no cost. Where
    the head holds the label it is `forward_kl`. Never below `forward_kl`, never above the full KL, zero at equality.

    Args:
        picked: [N, S] logits of the support.
        label_logit: [N].
        logsumexp: [N], T = 1.
        targets: the N positions.
    """
    return kl(head_label_and_rest(picked, label_logit, logsumexp, targets))
