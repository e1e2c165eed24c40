"""Head and sparse distillation loss, forward and backward: milliseconds and peak memory of every way, in one run.

`python benchmarks/head_loss.py` on a GPU takes the size of Qwen3's vocabulary; on a CPU a smaller one. It prints a
table in Markdown. Ways that are not installed (cut_cross_entropy, liger_kernel) or do not fit are left out by name.
Those two know hard labels only: they do less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from student_train.kernels.linear_logsumexp_gather import chunked, dense

SUPPORT = 64
Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, D], weight [V, D], ids [N, S], q [N, S], labels [N]) -> scalar loss."""


def distilled(primitive: Callable[..., tuple[Tensor, Tensor]]) -> Way:
    """Cross-entropy to the sparse target."""

    def way(hidden: Tensor, weight: Tensor, ids: Tensor, q: Tensor, _labels: Tensor) -> Tensor:
        picked, logsumexp = primitive(hidden, weight, ids)
        return (logsumexp[:, 0] - (q * picked).sum(1)).mean()

    return way


def ways(gpu: bool) -> dict[str, Way]:
    """Every way that is installed."""
    found = {"dense": distilled(dense), "chunked": distilled(chunked)}
    if not gpu:
        return found
    from student_train.kernels.linear_logsumexp_gather.triton import fused

    found["fused"] = distilled(fused)
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy (hard labels)"] = lambda h, w, _i, _q, y: linear_cross_entropy(h, w, y)
        found["cut-cross-entropy (hard labels, no filter)"] = lambda h, w, _i, _q, y: linear_cross_entropy(
            h, w, y, filter_eps=None
        )
    except ImportError as e:
        print(f"cut-cross-entropy left out: {e}")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        found["Liger (hard labels)"] = lambda h, w, _i, _q, y: LigerFusedLinearCrossEntropyLoss()(w, h, y)
    except ImportError as e:
        print(f"Liger left out: {e}")
    return found


def problem(N: int, D: int, V: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random inputs whose logits have a standard deviation near 2."""
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(N, D, generator=g, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=g, device=device) * 2 / D**0.5).to(dtype).requires_grad_()
    ids = torch.randint(0, V, (N, SUPPORT), generator=g, device=device)
    q = torch.softmax(torch.randn(N, SUPPORT, generator=g, device=device), 1)
    labels = torch.randint(0, V, (N,), generator=g, device=device)
    return hidden, weight, ids, q, labels


def measured(way: Way, inputs: tuple[Tensor, ...], repeats: int) -> tuple[float, float]:
    """Median milliseconds of forward + backward, and peak GiB beyond the inputs (0 on a CPU)."""
    hidden, weight = inputs[0], inputs[1]
    gpu = hidden.is_cuda

    def step() -> None:
        way(*inputs).backward()
        hidden.grad = weight.grad = None

    step()
    step()
    if not gpu:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times), 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    events: list[tuple[Any, Any]] = []
    for _ in range(repeats):
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        step()
        pair[1].record()
        events.append(pair)
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return statistics.median(a.elapsed_time(b) for a, b in events), peak


def main() -> None:
    """Print the table."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[4096, 16384, 65536] if gpu else [512])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512] if gpu else [64, 256])
    parser.add_argument("--vocabulary", type=int, default=151_936 if gpu else 49_152)
    parser.add_argument("--repeats", type=int, default=10 if gpu else 3)
    args = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; torch {torch.__version__}; V = {args.vocabulary:,}, K = {SUPPORT}, {dtype}, forward + backward")
    print("| way | H | N | ms | peak GiB |\n| --- | --- | --- | --- | --- |")
    for D in args.widths:
        for N in args.positions:
            for name, way in ways(gpu).items():
                if name == "dense" and N * args.vocabulary > 3e9:
                    continue
                inputs = problem(N, D, args.vocabulary, device, dtype)
                try:
                    ms, peak = measured(way, inputs, args.repeats)
                    print(
                        f"| {name} | {D} | {N:,} | {ms:.1f} | {peak:.2f} |"
                        if gpu
                        else f"| {name} | {D} | {N:,} | {ms:.0f} | |",
                        flush=True,
                    )
                except torch.cuda.OutOfMemoryError:
                    print(f"| {name} | {D} | {N:,} | out of memory | |", flush=True)
                del inputs
                if gpu:
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
