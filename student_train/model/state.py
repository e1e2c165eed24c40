"""Everything the student remembers between two calls: one fixed-size row a sequence, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class State(NamedTuple):
    """One dict of tensors a layer, encoder first; the first dimension of each tensor is the batch."""

    layers: tuple[dict[str, Tensor], ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        return State(tuple({name: change(x) for name, x in layer.items()} for layer in self.layers))

    def detach(self) -> State:
        return self.map(lambda x: x.detach())

    def select(self, rows: Tensor) -> State:
        """The rows [R] int64 of the batch, in that order, repeats allowed."""
        return self.map(lambda x: x.index_select(0, rows))

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """One batch of all their rows, in order."""
        if len(states) == 1:
            return states[0]
        layers = zip(*(s.layers for s in states), strict=True)
        return State(tuple({name: torch.cat([x[name] for x in same]) for name in same[0]} for same in layers))

    def to(self, device: Any) -> State:
        return self.map(lambda x: x.to(device))

    @property
    def bytes_per_row(self) -> int:
        return sum(x[0].numel() * x.element_size() for layer in self.layers for x in layer.values())

    def save(self, path: Path) -> None:
        """Write as safetensors, names `<layer>.<tensor>`."""
        tensors = {f"{i}.{name}": x.contiguous() for i, layer in enumerate(self.layers) for name, x in layer.items()}
        save_file(tensors, path)

    @staticmethod
    def load(path: Path) -> State:
        layers: dict[int, dict[str, Tensor]] = {}
        for name, x in load_file(path).items():
            layer, _, key = name.partition(".")
            layers.setdefault(int(layer), {})[key] = x
        return State(tuple(layers[i] for i in range(len(layers))))
