"""Where a trained model comes from: versions, hardware, code and shards. Facts only, nothing that training reads."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from shards import Dataset
from shards.files import sha256_file

PACKAGES = ("minicodformer", "torch", "deepspeed", "transformers", "numpy", "pyarrow", "safetensors")


def provenance(datasets: dict[str, Dataset], digest: str, ranks: int) -> dict[str, Any]:
    """JSON-serialisable facts about this run.

    Args:
        datasets: split name -> shards read.
        digest: of the stage's settings and inputs.
        ranks: processes training.
    """
    return {
        "digest": digest,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "ranks": ranks,
            "threads": torch.get_num_threads(),
        },
        "git_commit": _git_commit(),
        "shards": {
            split: {
                "manifest_sha256": sha256_file(data.folder / "dataset.json"),
                "rows": len(data),
                "tokens": data.num_tokens,
                "scored": data.num_scored,
                "fingerprints": data.header.fingerprints,
            }
            for split, data in datasets.items()
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from; None outside of one or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
