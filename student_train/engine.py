"""The DeepSpeed engine: its process environment, its JSON, and its start. No training logic.

DeepSpeed on CPU needs three things to be quiet and compiler-free: `DS_ACCELERATOR=cpu`, its shared-memory collective
(a C++ extension built at start) switched off, and torch's own AdamW.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from typing import Any

import torch
from torch import nn

from shards.errors import UserError

from . import ranks
from .config import TrainConfig

OWNED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "train.optimizer.clip",
    "optimizer": "train.optimizer",
    "scheduler": "train.optimizer",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
    "amp": "train.dtype",
    "zero_force_ds_cpu_optimizer": "train.offload",
    "checkpoint.load_universal": "train.ranks",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer": "train.offload",
    "zero_optimization.offload_param": "train.offload",
}
"""DeepSpeed keys that other settings decide, and those settings."""


def accumulation_steps(train: TrainConfig, world: int, kept: int | None = None) -> int:
    """Micro-steps in one step, from `accumulation` or from the global batch.

    Args:
        kept: global batch of the checkpoint that is gone on from, which then stays whatever the number of ranks.

    Raises:
        UserError: the global batch is no multiple of batch_size * ranks.
    """
    global_batch = train.global_batch if kept is None else kept
    if global_batch is None:
        return train.accumulation
    unit = train.batch_size * world
    if global_batch % unit == 0:
        return global_batch // unit
    trouble = f"{global_batch} does not divide into batch_size {train.batch_size} x {world} ranks"
    if kept is not None:
        raise UserError(f"train.ranks: the run's global batch of {trouble}; go on with {_fitting(train, kept, world)}")
    below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
    nearest = above if below == 0 or above - global_batch < global_batch - below else below
    raise UserError(f"train.global_batch: {trouble}; the nearest that does is {nearest}")


def _fitting(train: TrainConfig, global_batch: int, world: int) -> str:
    """The numbers of ranks nearest to `world` that share `global_batch` evenly."""
    fitting = [r for r in range(1, global_batch // train.batch_size + 1) if global_batch % (train.batch_size * r) == 0]
    nearest = [max(r for r in fitting if r < world), *[r for r in fitting if r > world][:1]]
    return f"{' or '.join(map(str, nearest))} {'rank' if nearest[-1] == 1 else 'ranks'}"


def uses_bfloat16(train: TrainConfig) -> bool:
    """`auto` means bfloat16 on GPUs only."""
    return train.dtype == "bfloat16" or (train.dtype == "auto" and torch.cuda.is_available())


def deepspeed_config(
    train: TrainConfig, *, accumulation: int, bfloat16: bool, universal: bool = False
) -> dict[str, Any]:
    """The DeepSpeed JSON in force, the user's `train.deepspeed` merged in.

    Args:
        universal: the checkpoint to load is in the universal form.

    Raises:
        UserError: `train.deepspeed` names a key that another setting owns.
    """
    optimizer = train.optimizer
    zero: dict[str, Any] = {
        "stage": train.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": 5_000_000,
    }
    if train.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": 5_000_000, "stage3_param_persistence_threshold": 100_000}
    if train.offload and train.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
        if train.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": bfloat16},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
                "fused": _fused(train),
            },
        },
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "zero_optimization": zero,
    }
    return _merged(ours, train.deepspeed, "")


def _fused(train: TrainConfig) -> bool:
    fused = train.optimizer.fused
    return fused if isinstance(fused, bool) else torch.cuda.is_available() and not train.offload


def _merged(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        path = prefix + key
        if path in OWNED:
            raise UserError(f"train.deepspeed.{path}: {value!r} is decided by {OWNED[path]}; set that instead")
        inner = merged.get(key)
        merged[key] = (
            _merged(inner, value, path + ".") if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged


def prepare_process(train: TrainConfig) -> None:
    """Environment, threads and warnings of this rank; before anything imports deepspeed."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(train.threads or max(1, (os.cpu_count() or 1) // local_ranks))
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.device())
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if local_ranks == ranks.world():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def join_ranks() -> None:
    """Start torch.distributed through DeepSpeed, without its compiled extension and with its log on stderr."""
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    logger.setLevel(logging.ERROR)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def start_engine(module: nn.Module, groups: list[dict[str, Any]], config: dict[str, Any]) -> Any:
    """Wrap `module` (whole and equal on every rank) into a DeepSpeed engine.

    Args:
        groups: optimizer parameter groups.
        config: from `deepspeed_config`.
    """
    import deepspeed

    engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=config, dist_init_required=False)
    return engine


def held_here(engine: Any) -> int:
    """Parameter elements that lie on this rank between steps: under stage 3 its partition, else all."""
    return sum(
        max(p.numel(), p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in engine.module.parameters()
    )


def full_parameter(parameter: nn.Parameter) -> torch.Tensor:
    """The whole float32 parameter on the CPU, from its master copy; every rank must call it (collective)."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if master is not None:
        return master.detach().reshape(getattr(parameter, "ds_shape", parameter.shape)).float().cpu().clone()
    with zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().cpu().clone()
