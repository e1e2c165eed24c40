"""The cell over a whole sequence by fused kernels: seven launches forward, exact whatever the wiring, no sweeps.

The command layer walks through time inside one kernel, a program a row, which its few recurrent synapses allow.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.liquid_layers import MAX_DEGREE, Fans, Neurons, Sigmoids, padded
from .synapses import Drive

if TYPE_CHECKING:
    from .ltc_ncp import LtcNcp


def list_fans(edges: NDArray[np.bool_]) -> Fans | None:
    """The synapses `edges` [C, C], source by target, as lists; None: some neuron has too many for the kernel."""
    into, into_real = _fan(edges.T)
    out_of, out_of_real = _fan(edges)
    if max(len(into), len(out_of)) > MAX_DEGREE:
        return None
    return Fans(*(torch.from_numpy(x) for x in (into, into_real, out_of, out_of_real)))


def _fan(edges: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Partners [degree, n] of each row of `edges` [n, n], the degree a power of two, and which of them are real."""
    degree = 1 << max(0, int(edges.sum(axis=1).max()) - 1).bit_length()
    partners, real = np.zeros((degree, len(edges)), np.int32), np.zeros((degree, len(edges)), bool)
    for neuron, row in enumerate(edges):
        found = np.flatnonzero(row)
        partners[: len(found), neuron], real[: len(found), neuron] = found, True
    return partners, real


def fused_states(
    cell: LtcNcp, x: Tensor, state: Tensor | None, keep: Tensor | None, layers: ModuleType | None = None
) -> list[Tensor]:
    """All states of each layer after every token, [B, T, .] each. `layers`: the twin to use, by default Triton's."""
    if layers is None:
        layers = importlib.import_module("..kernels.liquid_layers.triton", __package__)
    wide = torch.promote_types(x.dtype, torch.float32)
    c, pull, load = cell._leaks(wide)
    fresh = cell.start.to(wide)
    before = (fresh.expand(len(x), -1) if state is None else state.to(wide)).split(cell.sizes, dim=-1)
    inter, command, motor = (Neurons(*n) for n in zip(c, pull, load, fresh.split(cell.sizes), strict=True))
    sensory, to_command, recurrent, to_motor = (
        b(wide) for b in (cell.sensory, cell.inter_command, cell.recurrent, cell.command_motor)
    )
    fans = cell.fans
    assert fans is not None

    s = layers.activate(x, _sigmoids(sensory), sensory.matrix.dtype)
    inter_v, s = layers.leaky_layer(s @ _pad(sensory), inter, before[0], keep, _sigmoids(to_command))
    own = (_sigmoids(recurrent), recurrent.matrix, fans)
    command_v, s = layers.command_layer(s @ _pad(to_command), command, before[1], keep, _sigmoids(to_motor), own)
    motor_v, _ = layers.leaky_layer(s @ _pad(to_motor), motor, before[2], keep, None)
    return [inter_v, command_v, motor_v]


def _sigmoids(drive: Drive) -> Sigmoids:
    return Sigmoids(drive.sigma, drive.mu)


def _pad(drive: Drive) -> Tensor:
    """The drive's matrix [I, 2 J] with zeros up to whole 16 bytes a row: [P(I), 2 P(J)]."""
    sources, targets = drive.matrix.shape[0], drive.matrix.shape[1] // 2
    halves = drive.matrix.view(sources, 2, targets)
    rows, columns = padded(sources), padded(targets)
    return torch.nn.functional.pad(halves, (0, columns - targets, 0, 0, 0, rows - sources)).view(rows, 2 * columns)
