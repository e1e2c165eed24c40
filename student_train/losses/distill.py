"""The weighted sum of the parts that the config asks for, each also reported by name."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import LossConfig
from .cross_entropy import cross_entropy
from .forward_kl import forward_kl
from .hybrid import hybrid
from .targets import Targets


def part_names(config: LossConfig) -> tuple[str, ...]:
    """Names of the parts with a positive weight, in the order in which they are reported."""
    return tuple(name for name, weight in config if weight > 0)


def with_label_column(targets: Targets) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, S + 1] to pick: the support, then the label."""
    ids = torch.cat([targets.ids, targets.labels[:, None]], dim=1)
    return ids, torch.cat([targets.mask, torch.ones_like(targets.mask[:, :1])], dim=1)


def distill(picked: Tensor, logsumexp: Tensor, targets: Targets, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Loss a position and its parts.

    Args:
        picked: [N, S + 1] logits of `with_label_column(targets)`.
        logsumexp: [N], T = 1.
        targets: the N positions.
        config: weights of the parts.

    Returns:
        loss [N] = sum of weight * part, and parts [P, N] unweighted, in the order of `part_names(config)`.
    """
    support, label_logit = picked[:, :-1], picked[:, -1]
    parts = []
    for name in part_names(config):
        match name:
            case "hybrid":
                parts.append(hybrid(support, logsumexp, targets))
            case "forward_kl":
                parts.append(forward_kl(support, logsumexp, targets))
            case "cross_entropy":
                parts.append(cross_entropy(label_logit, logsumexp))
            case _:
                raise AssertionError(name)
    stacked = torch.stack(parts)
    weights = torch.tensor([getattr(config, n) for n in part_names(config)], dtype=picked.dtype, device=picked.device)
    return weights @ stacked, stacked
