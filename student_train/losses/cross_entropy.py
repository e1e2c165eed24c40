"""Cross-entropy to the corpus label: the part that needs no teacher."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(label_logit: Tensor, logsumexp: Tensor) -> Tensor:
    """[N]: -log s(label), nats.

    Args:
        label_logit: [N], the student's logit of the label (an extra column of the picked support).
        logsumexp: [N], T = 1.
    """
    return logsumexp - label_logit
