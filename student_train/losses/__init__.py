"""Losses as pure functions on picked logits [N, S] and normalisers [N]; never on [N, V].

Two families that are never compared with each other: *unbiased* (`hybrid`) estimates the full forward KL;
*on events* (`forward_kl`) is a lower bound of it.
"""

from .cross_entropy import cross_entropy
from .distill import distill, part_names, with_label_column
from .forward_kl import forward_kl
from .hybrid import hybrid
from .targets import Targets, build_targets

__all__ = [
    "Targets",
    "build_targets",
    "cross_entropy",
    "distill",
    "forward_kl",
    "hybrid",
    "part_names",
    "with_label_column",
]
