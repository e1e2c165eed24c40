"""The seeded wiring of a Neural Circuit Policy: who synapses on whom, and with which sign. Numpy only, no weights.

Four layers (Lechner et al. 2020): sensory inputs -> inter -> command -> motor, plus random recurrent synapses inside
command. Sampling follows the rules of the ncps package's AutoNCP draw for draw (legacy `RandomState`), so one seed
gives the package's very matrices. Neuron ids are the package's: motor first, then command, then inter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SIGNS = (-1, 1)


@dataclass(frozen=True, eq=False)
class Wiring:
    """Signed adjacency: `internal[i, j]` and `sensory[s, j]` are a synapse's polarity (-1, +1), 0: no synapse."""

    internal: NDArray[np.int8]  # [U, U], source by target
    sensory: NDArray[np.int8]  # [inputs, U]
    inter: int
    command: int
    motor: int

    @property
    def units(self) -> int:
        return self.inter + self.command + self.motor

    @property
    def motor_ids(self) -> slice:
        return slice(0, self.motor)

    @property
    def command_ids(self) -> slice:
        return slice(self.motor, self.motor + self.command)

    @property
    def inter_ids(self) -> slice:
        return slice(self.motor + self.command, self.units)

    @property
    def digest(self) -> str:
        """sha256 (hex) of sizes and both matrices: what a checkpoint records."""
        h = hashlib.sha256(repr((self.sensory.shape[0], self.inter, self.command, self.motor)).encode())
        h.update(self.internal.tobytes())
        h.update(self.sensory.tobytes())
        return h.hexdigest()

    def fan_in(self) -> NDArray[np.int64]:
        """[U] synapses that end on each neuron, sensory ones included."""
        return np.count_nonzero(self.internal, axis=0) + np.count_nonzero(self.sensory, axis=0)

    def fan_out(self) -> NDArray[np.int64]:
        """[U] synapses that start from each neuron."""
        return np.count_nonzero(self.internal, axis=1)

    def largest_component(self) -> int:
        """Neurons in the largest strongly connected component of the command layer (1: no cycle but self-synapses)."""
        return max(len(c) for c in strong_components(self.internal[self.command_ids, self.command_ids] != 0))


def auto_ncp(units: int, motor: int, inputs: int, *, sparsity: float = 0.5, seed: int = 22_222) -> Wiring:
    """Sample the wiring that ncps' `AutoNCP(units, motor, sparsity, seed)` builds for `inputs` input features.

    Raises:
        ValueError: `motor` leaves no room for an inter and a command neuron.
    """
    if motor >= units - 2:
        raise ValueError(f"motor {motor} must be smaller than units - 2 = {units - 2}")
    density = 1.0 - sparsity
    command = max(int(0.4 * (units - motor)), 1)
    inter = units - motor - command
    sampler = _Sampler(units, inputs, seed)
    motor_ids = list(range(motor))
    command_ids = list(range(motor, motor + command))
    inter_ids = list(range(motor + command, units))
    sampler.fan_out(sampler.sensory, range(inputs), inter_ids, max(int(inter * density), 1))
    sampler.fan_out(sampler.internal, inter_ids, command_ids, max(int(command * density), 1))
    sampler.recurrent(command_ids, max(int(command * density * 2), 1))
    sampler.fan_in(command_ids, motor_ids, max(int(command * density), 1))
    return Wiring(sampler.internal, sampler.sensory, inter, command, motor)


class _Sampler:
    """The random stream and the two matrices under construction. The order of the draws is the contract."""

    def __init__(self, units: int, inputs: int, seed: int) -> None:
        self.internal: NDArray[np.int8] = np.zeros((units, units), np.int8)
        self.sensory: NDArray[np.int8] = np.zeros((inputs, units), np.int8)
        self._rng = np.random.RandomState(seed)

    def _sign(self) -> int:
        return int(self._rng.choice(_SIGNS))

    def fan_out(self, matrix: NDArray[np.int8], sources: Sequence[int], targets: Sequence[int], synapses: int) -> None:
        """Each source picks `synapses` targets; a target nobody picked then gets the mean fan-in."""
        forgotten = dict.fromkeys(targets)
        for source in sources:
            for target in self._rng.choice(targets, size=synapses, replace=False):
                forgotten.pop(int(target), None)
                matrix[source, target] = self._sign()
        mean = min(max(int(len(sources) * synapses / len(targets)), 1), len(sources))
        for target in forgotten:
            for source in self._rng.choice(sources, size=mean, replace=False):
                matrix[source, target] = self._sign()

    def recurrent(self, neurons: Sequence[int], synapses: int) -> None:
        """`synapses` random ordered pairs; a pair drawn twice keeps its last sign, and self-synapses happen."""
        for _ in range(synapses):
            source = self._rng.choice(neurons)
            target = self._rng.choice(neurons)
            self.internal[source, target] = self._sign()

    def fan_in(self, sources: Sequence[int], targets: Sequence[int], synapses: int) -> None:
        """Each target picks `synapses` sources; a source nobody picked then gets the mean fan-out."""
        forgotten = dict.fromkeys(sources)
        for target in targets:
            for source in self._rng.choice(sources, size=synapses, replace=False):
                forgotten.pop(int(source), None)
                self.internal[source, target] = self._sign()
        mean = min(max(int(len(targets) * synapses / len(sources)), 1), len(targets))
        for source in forgotten:
            for target in self._rng.choice(targets, size=mean, replace=False):
                self.internal[source, target] = self._sign()


def strong_components(edges: NDArray[np.bool_]) -> list[list[int]]:
    """Strongly connected components of a graph [n, n] bool, source by target (two reachability passes a pivot)."""
    left = np.ones(len(edges), bool)
    found: list[list[int]] = []
    while left.any():
        pivot = int(np.argmax(left))
        both = _reachable(edges, pivot, left) & _reachable(edges.T, pivot, left)
        found.append(np.flatnonzero(both).tolist())
        left &= ~both
    return found


def _reachable(edges: NDArray[np.bool_], start: int, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    seen = np.zeros(len(edges), bool)
    seen[start] = True
    frontier = seen
    while frontier.any():
        frontier = edges[frontier].any(axis=0) & allowed & ~seen
        seen = seen | frontier
    return seen
