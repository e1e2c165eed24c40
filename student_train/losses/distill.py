"""The weighted sum of the parts that the config asks for, each also reported by name."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import LossConfig
from .cross_entropy import cross_entropy
from .decoupled import decoupled
from .forward_kl import forward_kl
from .hybrid import hybrid
from .jsd import jsd
from .label_residual import label_residual
from .renormalised import renormalised
from .reverse_kl import reverse_kl
from .targets import Targets


def with_label_column(targets: Targets) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, S + 1] to pick: the support, then the label."""
    ids = torch.cat([targets.ids, targets.labels[:, None]], dim=1)
    return ids, torch.cat([targets.mask, torch.ones_like(targets.mask[:, :1])], dim=1)


def distill(
    picked: Tensor, logsumexp: Tensor, targets: Targets, config: LossConfig, mean_logit: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss a position and its parts.

    Args:
        picked: [N, S + 1] logits of `with_label_column(targets)`.
        logsumexp: [N, C] at `config.temperatures`.
        targets: the N positions, with the rest mass at `config.temperature`.
        config: weights of the parts and their settings.
        mean_logit: [N], for label smoothing only.

    Returns:
        loss [N] = sum of weight * part, and parts [P, N] unweighted, in the order of `config.parts`.
    """
    parts = torch.stack([_part(name, picked, logsumexp, targets, config, mean_logit) for name in config.parts])
    weights = torch.tensor([getattr(config, n) for n in config.parts], dtype=picked.dtype, device=picked.device)
    return weights @ parts, parts


def _part(
    name: str, picked: Tensor, logsumexp: Tensor, targets: Targets, config: LossConfig, mean_logit: Tensor | None
) -> Tensor:
    support, label_logit = picked[:, :-1], picked[:, -1]
    plain, tempered, T = logsumexp[:, 0], logsumexp[:, -1], config.temperature
    match name:
        case "hybrid":
            return hybrid(support, plain, targets)
        case "forward_kl":
            return forward_kl(support, tempered, targets, T)
        case "label_residual":
            return label_residual(support, label_logit, plain, targets)
        case "decoupled":
            return decoupled(support, plain, targets, T)
        case "reverse_kl":
            return reverse_kl(support, tempered, targets, T)
        case "jsd":
            return jsd(support, tempered, targets, T, config.jsd_beta)
        case "renormalised":
            return renormalised(support, plain, targets)
        case "cross_entropy":
            return cross_entropy(label_logit, plain, mean_logit, config.label_smoothing)
    raise AssertionError(name)
