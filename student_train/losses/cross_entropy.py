"""Cross-entropy to the corpus label: the part that needs no teacher."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(
    label_logit: Tensor, logsumexp: Tensor, mean_logit: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """[N]: -(1 - smoothing) * log s(label) - smoothing * (mean over the vocabulary of log s), nats.

    Args:
        label_logit: [N], the student's logit of the label (an extra column of the picked support).
        logsumexp: [N], T = 1.
        mean_logit: [N], see `mean_logit`; needed where smoothing is not 0.
        smoothing: share of the target that is spread evenly over the real rows.
    """
    if smoothing == 0.0:
        return logsumexp - label_logit
    assert mean_logit is not None, "smoothing needs the mean logit"
    return logsumexp - (1 - smoothing) * label_logit - smoothing * mean_logit


def mean_logit(hidden: Tensor, weight: Tensor, num_real: int, bias: Tensor | None = None) -> Tensor:
    """[N]: mean of the logits over the real rows, as hidden times the mean row: no [N, V].

    Args:
        hidden: [N, D].
        weight: [V, D].
        num_real: rows that have a token; the others take no part.
        bias: [V] or None.
    """
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    mean = hidden.to(dtype) @ weight[:num_real].mean(0, dtype=dtype)
    return mean if bias is None else mean + bias[:num_real].mean(dtype=dtype)
