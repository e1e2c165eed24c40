"""Losses as pure functions on picked logits [N, S] and normalisers [N]; never on [N, V].

Two families that are never compared with each other: *unbiased* (`hybrid`) estimates the full forward KL; *on events*
(`forward_kl`, `label_residual`, `decoupled`, `reverse_kl`, `jsd`) are lower bounds of the full divergences, zero at
equality. `renormalised` is the field's baseline, `cross_entropy` needs no teacher.
"""

from .cross_entropy import cross_entropy, mean_logit
from .decoupled import decoupled
from .distill import distill, with_label_column
from .forward_kl import forward_kl
from .hybrid import hybrid
from .jsd import jsd
from .label_residual import label_residual
from .renormalised import renormalised
from .reverse_kl import reverse_kl
from .targets import Targets, build_targets
from .weights import position_weights

__all__ = [
    "Targets",
    "build_targets",
    "cross_entropy",
    "decoupled",
    "distill",
    "forward_kl",
    "hybrid",
    "jsd",
    "label_residual",
    "mean_logit",
    "position_weights",
    "renormalised",
    "reverse_kl",
    "with_label_column",
]
