"""Learning rate as a pure function of the step, and which parameters weight decay touches."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .config import OptimizerConfig


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Rate of step `step` (from 0): linear warm-up, then down to `final_fraction` at the last step, as `schedule` says.

    A run that its time box ends keeps the schedule of all `total_steps`, so that a resumed run repeats the same rates.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, total_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * _height(progress, config))


def _height(progress: float, config: OptimizerConfig) -> float:
    """The schedule's curve between 1 and 0, for `progress` in [0, 1] after the warm-up."""
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "wsd":
            return min(1.0, (1 - progress) / config.decay_share)


def parameter_groups(module: nn.Module, decayed: list[str], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Optimizer groups: the named parameters decay, all others of `module` do not. Empty groups are left out.

    Args:
        decayed: names as in `module.named_parameters()`.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    unknown = set(decayed) - set(parameters)
    assert not unknown, f"no such parameters: {sorted(unknown)}"
    names = set(decayed)
    groups = [
        {"params": [p for n, p in parameters.items() if n in names], "weight_decay": config.weight_decay},
        {"params": [p for n, p in parameters.items() if n not in names], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
