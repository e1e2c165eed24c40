"""The recurrent layer alone on one GPU, and one training micro-step of a whole small student.

    python benchmarks/student_cell.py [--output results.md]

B = 32, T = 2,048, 256 inputs, U = 256, 512, 1,024 neurons; bfloat16 weights and inputs, float32 states; medians of CUDA
events after warm-up. Baselines: cuDNN GRU and LSTM (bfloat16) and the ncps package (float32, T as stated: its loop over
time in Python scales with T). `layered` is the plain torch path with its sweeps, here on the Triton scan.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from student_train.cells.ltc_ncp import LtcNcp
from student_train.config import CellConfig, EncoderConfig, StudentConfig
from student_train.kernels.linear_scan import chunked
from student_train.kernels.linear_scan.triton import tiled
from student_train.model.lm import Student

B, T, INPUTS = 32, 2048, 256
NCPS_T = 32


def milliseconds(run: Callable[[], object], repeats: int = 15) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def both(module: nn.Module, x: torch.Tensor, repeats: int = 15) -> tuple[float, float]:
    """Forward without gradients, and forward + backward (gradients in the input and all parameters)."""

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        out = module(x)[0]
        out.backward(torch.ones_like(out))

    return milliseconds(forward, repeats), milliseconds(step, repeats)


class Layered(LtcNcp):
    def path(self, _: torch.Tensor) -> str:
        return "layered"


def agreement(units: int, dtype: torch.dtype) -> str:
    """Fused against layered on one set of weights: relative norm of the difference, outputs and worst gradient."""
    torch.manual_seed(0)
    ours, plain = (kind(64, CellConfig(units=units, sweeps=16)).cuda().to(dtype) for kind in (LtcNcp, Layered))
    plain.load_state_dict(ours.state_dict())
    assert ours.path(torch.zeros(1, device="cuda")) == "fused"
    x = torch.randn(4, 500, 64, device="cuda", dtype=dtype)
    keep = torch.rand(4, 500, device="cuda") > 0.02
    results = []
    for cell in (ours, plain):
        own = x.clone().requires_grad_()
        out, _ = cell(own, None, keep)
        weights = torch.randn(out.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
        (out * weights).sum().backward()
        named = {n: p.grad for n, p in cell.named_parameters()} | {"x": own.grad}
        results.append((out.detach(), named))
    (a, ga), (b, gb) = results

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).norm() / b.double().norm())

    worst = max((off(ga[n], gb[n]), n) for n in gb if gb[n] is not None and gb[n].norm() > 0)
    again = ours(x, None, keep)[0]
    same = torch.equal(again.detach(), a)
    return f"| U = {units}, {str(dtype)[6:]} | {off(a, b):.1e} | {worst[0]:.1e} ({worst[1]}) | {same} |"


def cells(units: int) -> list[str]:
    torch.manual_seed(0)
    x = torch.randn(B, T, INPUTS, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    modules: dict[str, nn.Module] = {
        "LTC-NCP fused": LtcNcp(INPUTS, CellConfig(units=units)).cuda().bfloat16(),
        "LTC-NCP layered (8 sweeps)": Layered(INPUTS, CellConfig(units=units)).cuda().bfloat16(),
        "cuDNN GRU": nn.GRU(INPUTS, units, batch_first=True).cuda().bfloat16(),
        "cuDNN LSTM": nn.LSTM(INPUTS, units, batch_first=True).cuda().bfloat16(),
    }
    rows = []
    for name, module in modules.items():
        torch.cuda.reset_peak_memory_stats()
        forward, step = both(module, x, 5 if "cuDNN" in name else 15)
        peak = torch.cuda.max_memory_allocated() / 2**30
        rows.append(f"| {units} | {name} | {forward:.2f} | {step:.2f} | {peak:.1f} |")
    return rows


def package(units: int) -> list[str]:
    try:
        from ncps.torch import LTC
        from ncps.wirings import AutoNCP
    except ImportError:
        return []
    module = LTC(INPUTS, AutoNCP(units, units // 4), batch_first=True).cuda()
    x = torch.randn(B, NCPS_T, INPUTS, device="cuda", requires_grad=True)
    forward, step = both(module, x, 3)
    return [f"| {units} | ncps LTC, 6 unfolds, float32, **T = {NCPS_T}** | {forward:.0f} | {step:.0f} | |"]


def scans() -> list[str]:
    rows = []
    for units in (231, 512):
        a, b = torch.rand(B, T, units, device="cuda"), torch.randn(B, T, units, device="cuda")
        moved = 3 * a.numel() * 4 / 1e9
        for name, run in (("Triton", tiled), ("chunked torch", chunked)):
            ms = milliseconds(lambda run=run, a=a, b=b: run(a, b))
            rows.append(f"| {units} | {name} | {ms:.3f} | {moved / ms * 1e3:.0f} |")
    return rows


def micro_steps() -> list[str]:
    """Forward + backward of hidden vectors, batch 2 x 128, 3 attention + 3 LTC-NCP blocks, without the head's loss."""
    rows = []
    config = StudentConfig(embedding_size=128, encoder=EncoderConfig(layers=3, heads=4))
    ids = torch.randint(0, 1000, (2, 128), device="cuda")
    reset = torch.zeros_like(ids, dtype=torch.bool)
    reset[:, 0] = True
    for name in ("fused", "layered"):
        torch.manual_seed(0)
        student = Student(config, 151_669, 151_936).cuda().bfloat16()
        if name == "layered":
            for block in student.blocks:
                block.mixer.cell.__class__ = Layered

        def step(student: Student = student) -> None:
            student.zero_grad(set_to_none=True)
            student(ids, reset=reset, carry=False)[0].square().mean().backward()

        rows.append(f"| {name} | {milliseconds(step, 10):.1f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, B = {B}, T = {T}, {INPUTS} inputs", ""]

    def table(head: str, rows: list[str]) -> None:
        lines.extend([head, "| " + " | ".join("---" for _ in head.split("|")[1:-1]) + " |", *rows, ""])
        print("\n".join(lines[-len(rows) - 3 :]), flush=True)

    checks = [(96, torch.float32), (512, torch.float32), (512, torch.bfloat16), (1024, torch.float32)]
    table("| fused against layered | output | worst gradient | repeats bit by bit |", [agreement(*c) for c in checks])
    table("| linear scan, U | twin | ms | GB/s (3 tensors) |", scans())
    table(
        "| U | layer | forward ms | forward + backward ms | peak GiB |",
        [r for u in (256, 512, 1024) for r in cells(u) + (package(u) if u < 1024 else [])],
    )
    table("| micro-step 2 x 128, whole student | ms |", micro_steps())
    if options.output:
        options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
