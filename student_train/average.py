"""An exponential moving average of the weights, exact in float32 and kept in parts where ZeRO-3 keeps the weights so.

Below stage 3 every rank has all parameters, and averages them as they are (under bfloat16: the rounded ones).
A checkpoint holds the average whole, so that any number of ranks can go on from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .ranks import rank, world

FILE = "average.safetensors"


class WeightAverage:
    """The average of a module's parameters over the steps of a run."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Starts at the present weights; each rank keeps its own part (stage 3) or all."""
        self._parameters = dict(module.named_parameters())
        self._decay = decay
        self._ours = {name: _here(p).clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0).

        The decay is min(decay, (1 + step) / (10 + step)): early averages forget the initial weights faster.
        """
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._ours.values()), [_here(p) for p in self._parameters.values()], share)

    def whole(self, name: str) -> Tensor:
        """The averaged parameter, float32 on the CPU; every rank must call it (collective)."""
        parameter: Any = self._parameters[name]
        ours = self._ours[name]
        if not hasattr(parameter, "ds_id"):
            return ours.cpu()
        parts = [torch.empty_like(ours) for _ in range(world())]
        dist.all_gather(parts, ours)
        whole: Tensor = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()
        return whole

    def save(self, folder: Path) -> None:
        """Write the whole average into `folder`; every rank calls it."""
        from safetensors.torch import save_file

        state = {}
        for name in self._ours:
            tensor = self.whole(name)
            if rank() == 0:
                state[name] = tensor.contiguous()
        if rank() == 0:
            save_file(state, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take our part of the average that any number of ranks left in `folder`."""
        from safetensors import safe_open

        with safe_open(folder / FILE, "pt") as file:
            for name, ours in self._ours.items():
                flat = file.get_tensor(name).reshape(-1)
                if hasattr(self._parameters[name], "ds_id"):
                    flat = flat[rank() * ours.numel() : (rank() + 1) * ours.numel()]
                ours.zero_()  # the last part may be padded
                ours.view(-1)[: flat.numel()].copy_(flat)


def _here(parameter: nn.Parameter) -> Tensor:
    """This rank's float32 part of a parameter: of its master copy under stage 3, else all of it."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        part: Tensor = safe_get_local_fp32_param(parameter)
        return part.detach().reshape(-1)
    return parameter.detach().float()
