"""Which machine a kernel may run on."""

from __future__ import annotations

import functools
import importlib.util

from torch import Tensor


@functools.cache
def triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_runs(x: Tensor) -> bool:
    """Triton kernels can take this tensor: it is on a CUDA device, and Triton (part of torch's GPU wheels) is there."""
    return x.is_cuda and triton_installed()
