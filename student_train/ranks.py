"""Several processes acting as one: sums over ranks, one rank doing what must be done once, and a shared refusal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from shards.errors import UserError, from_os_error

T = TypeVar("T")


def rank() -> int:
    """Of the launcher's environment; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of ranks by the launcher's environment; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sums, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return total.tolist()


def on_rank_0(do: Callable[[], T]) -> T:
    """Run `do` on rank 0 only; every rank waits and returns its (picklable) result.

    Raises:
        UserError: on all ranks alike, where `do` raised one on rank 0 (a full disk counts as one).
    """
    outcome: list[object] = [None, None]
    if rank() == 0:
        try:
            outcome = [None, do()]
        except UserError as e:
            outcome = [str(e), None]
        except OSError as e:
            user_error = from_os_error(e)
            if user_error is None:
                raise
            outcome = [str(user_error), None]
    dist.broadcast_object_list(outcome, src=0, device=device())
    refusal, value = outcome
    if refusal is not None:
        raise UserError(str(refusal))
    return value  # type: ignore[return-value]
