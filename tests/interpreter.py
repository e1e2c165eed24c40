"""Triton kernels on a CPU, through Triton's own interpreter."""

import importlib
import os
from types import ModuleType

import pytest
import torch


def interpreted_triton(module: str) -> ModuleType:
    """The kernel module, its kernels interpreted; skips where Triton is missing or means to compile for a GPU."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    os.environ["TRITON_INTERPRET"] = "1"  # must stay: Triton reads it when kernels are decorated and when they run
    triton = pytest.importorskip("triton", reason="Triton is not installed (pip install triton==3.7.1)")
    if isinstance(triton.language.sum, triton.runtime.JITFunction):
        pytest.skip("Triton was imported for a GPU earlier in this process")
    return importlib.import_module(module)
