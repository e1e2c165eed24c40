"""The LTC-NCP cell: liquid time-constant neurons wired as a Neural Circuit Policy.

Hasani et al. 2021 (the neurons), Lechner et al. 2020 (the wiring).

One fused semi-implicit step a token (or K of them, the input held):

    v_j <- (c_j v_j + g_j r_j + sum_i w_ij s(v_i) E_ij) / (c_j + g_j + sum_i w_ij s(v_i) + 1e-8),   c = K C

with capacitance C, leak conductance g towards the rest r. Within a step the layers update in order: inter, then command
on the new inter states (and on the old command states, its recurrent synapses), then motor. That is the ncps package's
network with the motor output moved by two steps.

`step` is the law. `forward` gives the same over a whole sequence, by one of two ways (`path` says which):
layered, in plain torch: inter and motor neurons are exact linear scans (`leak.py`), the command layer takes a fixed
number of sweeps (`command.py`); or fused, on CUDA: one kernel a layer, exact without sweeps (`fused.py`).
States: [B, U], order inter, command, motor. A segment starts from the learned state `start`. The output is the motor
state plus `offset`, which is the package's output bias.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..config import CellConfig
from ..kernels.device import triton_runs
from ..kernels.liquid_layers import Fans
from .command import Command
from .fused import fused_states, list_fans
from .leak import Leak, linear_layer
from .synapses import Synapses, softplus_inverse
from .wiring import Wiring, auto_ncp

EPSILON = 1e-8


class LtcNcp(nn.Module):
    """S input features -> M motor neurons, U neurons in all."""

    def __init__(self, inputs: int, config: CellConfig) -> None:
        super().__init__()
        self.config = config
        self.motor = config.motor or config.units // 4
        self.wiring: Wiring = auto_ncp(
            config.units, self.motor, inputs, sparsity=config.wiring.sparsity, seed=config.wiring.seed
        )
        wiring, fan_in, per_edge = self.wiring, self.wiring.fan_in(), config.synapses == "per_edge"
        inter, command, motor = wiring.inter_ids, wiring.command_ids, wiring.motor_ids
        self.sizes = [wiring.inter, wiring.command, wiring.motor]

        def bundle(polarity: np.ndarray, targets: slice) -> Synapses:
            return Synapses(polarity, per_edge=per_edge, fan_in=fan_in[targets])

        self.sensory = bundle(wiring.sensory[:, inter], inter)
        self.inter_command = bundle(wiring.internal[inter, command], command)
        self.recurrent = bundle(wiring.internal[command, command], command)
        self.command_motor = bundle(wiring.internal[command, motor], motor)
        fans = list_fans(wiring.internal[command, command] != 0)
        for name, fan in ({} if fans is None else fans._asdict()).items():
            self.register_buffer(f"fan_{name}", fan, persistent=False)
        self.has_fans = fans is not None
        self.raw_capacitance = nn.Parameter(torch.empty(config.units))
        self.raw_leak = nn.Parameter(torch.empty(config.units))
        self.rest = nn.Parameter(torch.empty(config.units))
        self.start = nn.Parameter(torch.empty(config.units))
        self.offset = nn.Parameter(torch.empty(self.motor))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Long memory in the inter layer, and signals that survive three layers of averaging.

        A conductance neuron averages its inputs, so with the package's values the motor states hardly move: a constant
        plus a few thousandths. So the net is started at its resting state under normed inputs (`start`), the sigmoids
        of unit sources have their middle there, `offset` takes the constant away, reversal potentials are +-3, and only
        inter neurons are slow (C log-uniform in [1, 512]; [.1, 2] further on). On a byte model of 0.3 M parameters
        (1,500 steps, two blocks, no attention) that took the validation loss from 1.365 nats to 1.294; without the
        cell it was 1.366.
        """
        self.sensory.reset_parameters((1.0, 3.0), 0.7)
        self.recurrent.reset_parameters((1.0, 3.0), 0.05)  # steep recurrence is what needs many sweeps
        for bundle in (self.inter_command, self.command_motor):
            bundle.reset_parameters((4.0, 7.0), 0.05)
        capacitance = torch.rand_like(self.raw_capacitance)
        slow, fast = capacitance.split([self.sizes[0], self.config.units - self.sizes[0]])
        slow.copy_(512.0**slow)
        fast.copy_(0.1 * 20.0**fast)
        self.raw_capacitance.copy_(softplus_inverse(capacitance))
        self.raw_leak.copy_(softplus_inverse(torch.empty_like(self.raw_leak).uniform_(0.05, 0.25)))
        self.rest.uniform_(-0.2, 0.2)
        self._settle(torch.randn(1024, self.sensory.shape[0]))

    def _settle(self, x: Tensor) -> None:
        """Set `start`, `offset` and the middles of the sigmoids by the resting state under inputs x [samples, S]."""
        c, pull, load = self._leaks(torch.float32)
        rest = [load[i] - c[i] for i in range(3)]
        drive = self.sensory(torch.float32)
        num, den = drive.collect(drive.activation(x))
        inter = (pull[0] + num.mean(0)) / (rest[0] + den.mean(0))
        self.inter_command.centre(inter)
        drive = self.inter_command(torch.float32)
        num, den = drive.collect(drive.activation(inter))
        recurrent = self.recurrent(torch.float32)
        num_r, den_r = recurrent.collect(recurrent.activation(torch.zeros(self.sizes[1])))  # at rest once centred
        command = (pull[1] + num + num_r) / (rest[1] + den + den_r)
        self.recurrent.centre(command)
        self.command_motor.centre(command)
        drive = self.command_motor(torch.float32)
        num, den = drive.collect(drive.activation(command))
        motor = (pull[2] + num) / (rest[2] + den)
        self.start.copy_(torch.cat([inter, command, motor]))
        self.offset.copy_(-motor)

    def _leaks(self, wide: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """c, g r and c + g + epsilon, each split into inter, command, motor."""
        c = nn.functional.softplus(self.raw_capacitance.to(wide)) * self.config.unfolds
        g = nn.functional.softplus(self.raw_leak.to(wide))
        pull = g * self.rest.to(wide)
        return list(c.split(self.sizes)), list(pull.split(self.sizes)), list((c + g + EPSILON).split(self.sizes))

    @property
    def fans(self) -> Fans | None:
        """The recurrent synapses as lists, where the fused path can take them."""
        return Fans(*(self.get_buffer(f"fan_{name}") for name in Fans._fields)) if self.has_fans else None

    def path(self, x: Tensor) -> Literal["layered", "fused"]:
        """How `forward` takes a sequence like x."""
        fits = self.has_fans and self.config.unfolds == 1 and self.config.synapses == "per_source"
        return "fused" if fits and triton_runs(x) else "layered"

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: x [B, S], state [B, U] -> motor [B, M], state [B, U]. The law that `forward` is held to."""
        wide = state.dtype
        c, pull, load = self._leaks(wide)
        sensory, to_command, recurrent, to_motor = (
            b(wide) for b in (self.sensory, self.inter_command, self.recurrent, self.command_motor)
        )
        inter, command, motor = state.split(self.sizes, dim=-1)
        num_in, den_in = sensory.collect(sensory.activation(x.to(wide)))
        for _ in range(self.config.unfolds):
            inter = (c[0] * inter + pull[0] + num_in) / (load[0] + den_in)
            num, den = to_command.collect(to_command.activation(inter))
            num_r, den_r = recurrent.collect(recurrent.activation(command))
            command = (c[1] * command + pull[1] + num + num_r) / (load[1] + den + den_r)
            num, den = to_motor.collect(to_motor.activation(command))
            motor = (c[2] * motor + pull[2] + num) / (load[2] + den)
        return motor + self.offset.to(wide), torch.cat([inter, command, motor], dim=-1)

    def forward(
        self, x: Tensor, state: Tensor | None = None, keep: Tensor | None = None, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, S] -> motor [B, T, M], state [B, U], both float32 or wider.

        keep: [B, T] bool, False where a segment starts (the state before it is dropped). None: no starts.
        last: [B] index of each row's last real token, -1: none (its state stays). None: T - 1.
        """
        states = self._states(x, state, keep)
        out = states[2] + self.offset.to(states[2].dtype)
        if last is None:
            return out, torch.cat([s[:, -1] for s in states], dim=-1)
        index = last.clamp(min=0).view(-1, 1, 1)
        final = torch.cat([s.take_along_dim(index, dim=1).squeeze(1) for s in states], dim=-1)
        before = (self.start if state is None else state).to(final.dtype)
        return out, torch.where(last.unsqueeze(1) >= 0, final, before)

    @torch.no_grad()
    def residual(self, x: Tensor, state: Tensor | None = None, keep: Tensor | None = None) -> float:
        """Largest command-state change that one more sweep would make: the check of `sweeps`, for debugging."""
        return float(self._layered(x, state, keep)[1].abs().max())

    def _states(self, x: Tensor, state: Tensor | None, keep: Tensor | None) -> list[Tensor]:
        """All states of each layer after every token, [B, T, .] each."""
        if self.path(x) == "fused":
            return fused_states(self, x, state, keep)
        return self._layered(x, state, keep)[0]

    def _layered(self, x: Tensor, state: Tensor | None, keep: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """As `_states`, and the residual of the command layer."""
        K, wide = self.config.unfolds, torch.promote_types(x.dtype, torch.float32)
        c, pull, load = self._leaks(wide)
        fresh = self.start.to(wide)
        before = (fresh.expand(len(x), -1) if state is None else state.to(wide)).split(self.sizes, dim=-1)
        starts = list(fresh.split(self.sizes))
        if K > 1 and keep is not None:
            keep = torch.stack([keep] + [torch.ones_like(keep)] * (K - 1), dim=2).flatten(1)

        drive = self.sensory(wide)
        num, den = drive.collect(drive.activation(x.to(wide)))
        if K > 1:
            num, den = num.repeat_interleave(K, dim=1), den.repeat_interleave(K, dim=1)
        inter = linear_layer(Leak(c[0], starts[0]), pull[0] + num, load[0] + den, before[0], keep)

        drive = self.inter_command(wide)
        num, den = drive.collect(drive.activation(inter))
        layer = Command(Leak(c[1], starts[1]), self.recurrent(wide), self.config.sweeps)
        command, residual = layer.solve(pull[1] + num, load[1] + den, before[1], keep)

        drive = self.command_motor(wide)
        num, den = drive.collect(drive.activation(command))
        motor = linear_layer(Leak(c[2], starts[2]), pull[2] + num, load[2] + den, before[2], keep)
        states = [inter, command, motor]
        return ([s[:, K - 1 :: K] for s in states] if K > 1 else states), residual
