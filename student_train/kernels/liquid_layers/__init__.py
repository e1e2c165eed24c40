"""The three layers of an LTC-NCP cell over a whole sequence, one launch each, with their exact adjoints.

    activate       s = sigmoid(sigma (x - mu)): what the presynaptic side of a bundle of synapses makes of its input
    leaky_layer    v_t = (c v_{t-1} + pull + num_t) / (load + den_t): no synapses inside the layer, a scan
    command_layer  the same with recurrent synapses, num_t + R(s(v_{t-1})): sparse, so one walk through time, exact

`sums` [B, T, 2 P] holds num beside den, each P wide (see `padded`; columns beyond the neurons are ignored), as the
product of activations and synapse matrix gives them. Each layer also returns the activations for the next bundle.
Twins: `reference` (plain torch, the law) and `triton` (CUDA).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MAX_DEGREE = 16  # recurrent synapses into (or out of) one neuron that `triton.command_layer` takes


class Neurons(NamedTuple):
    """A layer's own dynamics, [U] each, float32 or wider."""

    c: Tensor
    pull: Tensor
    load: Tensor
    start: Tensor  # the state before a segment's first step


class Sigmoids(NamedTuple):
    """The presynaptic side of one bundle of synapses, [sources] each, float32 or wider."""

    sigma: Tensor
    mu: Tensor


class Fans(NamedTuple):
    """The recurrent synapses as lists, padded with repeats of weight zero."""

    into: Tensor  # [degree, C] int32, the sources of each neuron
    into_real: Tensor  # [degree, C] bool
    out_of: Tensor  # [degree, C] int32, the targets of each neuron
    out_of_real: Tensor  # [degree, C] bool


def padded(units: int) -> int:
    """Columns that `units` neurons take: tensor cores want rows of whole 16 bytes."""
    return -(-units // 8) * 8
