"""Real training under torchrun on two CPU ranks: sums over ranks, partitioning, kills and stops.

Each start costs several seconds of imports, so few runs are made and shared: `straight` is the uninterrupted one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from student_train.checkpoint import complete_checkpoints
from student_train.model.files import load_model

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

STEPS = 10
TRAIN: dict[str, Any] = {
    "student": {
        "hidden_size": 16,
        "encoder": {"layers": 1, "heads": 2, "window": 8},
        "blocks": 1,
        "cell": {"units": 16},
        "embedding_size": 8,
    },
    "loss": {"hybrid": 1.0, "forward_kl": 0.5, "cross_entropy": 0.1},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "batch_size": 2,
    "global_batch": 8,
    "steps": STEPS,
    "checkpoint_every": 3,
    "threads": 1,
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}

TOLERANCES = {"loss": 1e-6, "hybrid": 1e-6, "forward_kl": 1e-6, "cross_entropy": 1e-6, "grad_norm": 1e-4}
"""Relative, over ten steps: the ranks add in another order, and AdamW divides near-zero gradients by their own size."""


@dataclass
class Run:
    """One output folder and the way to start torchrun on it."""

    output: Path
    job: Path

    def start(self, ranks: int = 2) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return subprocess.Popen(
            [*command, "-m", "student_train", str(self.job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def finish(self, ranks: int = 2) -> str:
        process = self.start(ranks)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        return output

    def lines(self) -> list[dict[str, Any]]:
        """The metrics that do not depend on the clock."""
        path = self.output / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        parsed = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in parsed]

    def wait_for_line(self, process: subprocess.Popen[str], count: int) -> None:
        while len(self.lines()) < count:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)


def new_run(shards: Path, folder: Path, **changes: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "stage": "train",
        "train": TRAIN | changes,
        "shards": str(shards),
        "output": str(folder / "train"),
        "digest": "0123456789abcdef",
    }
    (folder / "job.json").write_text(json.dumps(job))
    return Run(folder / "train", folder / "job.json")


@pytest.fixture(scope="module")
def make(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    return lambda name, **changes: new_run(shards, tmp_path_factory.mktemp(name), **changes)


@pytest.fixture(scope="module")
def straight(make: Callable[..., Run]) -> Run:
    run = make("straight")
    (run.output.parent / "log").write_text(run.finish())
    return run


def test_two_ranks_give_the_losses_of_one_at_the_same_global_batch(make, straight):
    one = make("one")
    one.finish(ranks=1)
    ours, law = straight.lines(), one.lines()
    assert len({line["scored"] for line in ours}) > 3, "the batches should have unequal numbers of scored positions"
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert ours[0]["grad_norm"] == pytest.approx(law[0]["grad_norm"], rel=1e-6), "before AdamW amplifies rounding"
    for a, b in zip(ours, law, strict=True):
        for key, tolerance in TOLERANCES.items():
            assert a[key] == pytest.approx(b[key], rel=tolerance), (a["step"], key)
        for key in ("step", "epoch", "lr", "scored", "tokens"):
            assert a[key] == b[key], (a["step"], key)


def test_each_of_two_ranks_holds_half_of_every_parameter(straight):
    student = load_model(straight.output / "model")
    note = re.search(r"([\d,]+) parameters; rank 0 of 2 holds ([\d,]+)", (straight.output.parent / "log").read_text())
    assert note is not None
    total, held = (int(text.replace(",", "")) for text in note.groups())
    sizes = [p.numel() for p in student.parameters()]
    assert (total, held) == (sum(sizes), sum((size + 1) // 2 for size in sizes))
    states = complete_checkpoints(straight.output / "checkpoints")[-1][0].glob("*rank_0_*optim_states.pt")
    (state,) = (torch.load(path, weights_only=False)["optimizer_state_dict"] for path in states)
    assert sum(group.numel() for group in state["fp32_flat_groups"]) == held


def test_the_model_folder_holds_the_whole_trained_student(straight):
    student = load_model(straight.output / "model")
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert (straight.output / "model" / "tokenizer.json").exists()
    losses = [line["loss"] for line in straight.lines()]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_finished_run_is_not_trained_again(straight):
    before = (straight.output / "metrics.jsonl").read_bytes()
    output = straight.finish(ranks=1)
    assert "already trained" in output
    assert (straight.output / "metrics.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_bitwise_as_if_it_had_not_been(make, straight):
    run = make("killed")
    process = run.start()
    run.wait_for_line(process, 5)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)  # torchrun alone: the ranks must die with it
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    seen = len(run.lines())
    (tag,) = {c[0].name for c in complete_checkpoints(run.output / "checkpoints")[-1:]}
    output = run.finish()
    resumed = re.search(r"going on after step (\d+)", output)
    assert resumed is not None, output
    assert int(resumed[1]) == int(tag.removeprefix("step-")) <= seen
    assert run.lines() == straight.lines()


def stop_after(run: Run, step: int, ranks: int) -> None:
    """Train on `ranks` until the metrics show `step`, then ask for a stop."""
    process = run.start(ranks)
    run.wait_for_line(process, step)
    process.send_signal(signal.SIGTERM)
    assert "stopped after step" in process.communicate(timeout=100)[0]


def assert_same_course(ours: list[dict[str, Any]], law: list[dict[str, Any]]) -> None:
    """The same rows in the same steps, and losses within 1e-5."""
    assert len(ours) == len(law)
    for a, b in zip(ours, law, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), a["step"]
        assert {k: a[k] for k in ("step", "epoch", "lr", "scored", "tokens")} == {
            k: b[k] for k in ("step", "epoch", "lr", "scored", "tokens")
        }


def test_a_run_of_two_ranks_goes_on_with_one_as_if_nothing_had_changed(make, straight):
    run = make("moved")
    stop_after(run, 4, ranks=2)
    assert re.search(r"going on after step \d+ .* written by 2 ranks, now 1", run.finish(ranks=1))
    assert_same_course(run.lines(), straight.lines())
    left = [p.name for p in (run.output / "checkpoints").iterdir() if "universal" in p.name]
    assert left == [], "pruned with the next checkpoint"


def test_recomputed_activations_and_a_fused_optimizer_change_no_loss(make, straight):
    optimizer = TRAIN["optimizer"] | {"fused": True}
    run = make("recomputed", activation_checkpointing=True, optimizer=optimizer, ema=0.9)
    run.finish(ranks=2)
    assert_same_course(run.lines(), straight.lines())
    averaged, last = (load_model(r.output / "model").embedding.weight for r in (run, straight))
    assert 1e-4 < (averaged - last).abs().max() < 0.1, "the model written is the average"


@pytest.mark.slow
def test_a_run_goes_from_two_ranks_to_one_and_on_to_three(make):
    settings = {"global_batch": 12, "ema": 0.9}
    law, run = make("twelve", **settings), make("moved-twice", **settings)
    law.finish(ranks=2)
    stop_after(run, 3, ranks=2)
    stop_after(run, 6, ranks=1)
    assert "written by 1 ranks, now 3" in run.finish(ranks=3)
    assert_same_course(run.lines(), law.lines())
    ours, theirs = (load_model(r.output / "model").state_dict() for r in (run, law))
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-5) for name in theirs)


def test_sigterm_saves_the_step_in_progress_and_the_run_goes_on_from_there(make, straight):
    run = make("stopped")
    process = run.start()
    run.wait_for_line(process, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    stopped = re.search(r"stopped after step (\d+)", output)
    assert stopped is not None, output
    assert complete_checkpoints(run.output / "checkpoints")[-1][1].step == int(stopped[1])
    assert f"going on after step {stopped[1]} " in run.finish()
    assert run.lines() == straight.lines()
