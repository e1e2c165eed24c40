"""A sweep written out as variants: every point of the grid or list, times the seeds, and the control.

The control is the configuration's own student trained on the text alone, without the teacher: what a sweep's figures
are to be read against. Nothing here starts a run; variants do that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .config import SweepConfig

CONTROL = "control"
CONTROL_LOSS = {"train.loss.hybrid": 0.0, "train.loss.forward_kl": 0.0, "train.loss.cross_entropy": 1.0}

Overrides = dict[str, Any]


def variants_of(sweep: SweepConfig) -> dict[str, Overrides]:
    """Variant name -> dotted overrides, the control first."""
    points = {CONTROL: dict(CONTROL_LOSS), **_named(_points(sweep))}
    return {
        _with_seed(name, seed, sweep): overrides | ({} if seed is None else {"train.seed": seed})
        for name, overrides in points.items()
        for seed in (sweep.seeds or (None,))
    }


def groups_of(sweep: SweepConfig) -> dict[str, list[str]]:
    """What was swept -> its variants, one a seed, in the order of `variants_of`."""
    return {
        name: [_with_seed(name, seed, sweep) for seed in (sweep.seeds or (None,))]
        for name in (CONTROL, *_named(_points(sweep)))
    }


def _points(sweep: SweepConfig) -> list[Overrides]:
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    return [*(grid if sweep.grid else []), *map(dict, sweep.points)]


def _named(points: list[Overrides]) -> dict[str, Overrides]:
    """Names from the last word of each key, or from the whole key where two keys end alike; equal points once."""
    short = _shortened({key for point in points for key in point})
    return {"_".join(f"{short[key]}-{_text(value)}" for key, value in point.items()): point for point in points}


def _shortened(keys: Iterable[str]) -> Mapping[str, str]:
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    ends = list(last.values())
    return {key: end if ends.count(end) == 1 else key for key, end in last.items()}


def _text(value: Any) -> str:
    """A value as part of a folder name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(value)).strip("-")


def _with_seed(name: str, seed: int | None, sweep: SweepConfig) -> str:
    return name if len(sweep.seeds) < 2 else f"{name}_seed-{seed}"
