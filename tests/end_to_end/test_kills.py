"""SIGKILL at random moments: no orphan writes on, a rerun ends with the same bytes and the same losses.

A few kills on a tiny random teacher here; ten of each on the real one in `make slow`. KILL_SEED=n moves the moments.
"""

from __future__ import annotations

import os
import random
from itertools import cycle
from pathlib import Path

import pytest
from harness import Project

REAL = {"kind": "packaged", "name": "smollm2-135m-instruct"}
SHORTER = ("prepare.max_tokens=4000", "dump.rows_per_shard=2", "dump.probe_positions=16")
LONGER = ("train.steps=36", "train.checkpoint_every=2")


@pytest.fixture
def dice() -> random.Random:
    return random.Random(int(os.environ.get("KILL_SEED", "0")))


def dump_killed(project: Project, targets: list[str], moments: list[int], dice: random.Random, *more: str) -> None:
    """Dump with a kill after each of `moments` (numbers of shards), then to the end; equal to an unbroken dump."""
    command = ("dump", "tiny.yaml", *more)
    for target, moment in zip(targets, moments, strict=True):
        project.kill_once(command, target, lambda moment=moment: project.shards_so_far() >= moment, dice)
    finished = project.call(*command, timeout=600)
    assert finished.code == 0, finished.output
    killed = project.shard_bytes()
    (project.folder / "dumps").rename(project.folder / "killed")
    unbroken = project.call(*command, timeout=600)
    assert unbroken.code == 0, unbroken.output
    assert killed == project.shard_bytes()


def training_killed(project: Project, targets: list[str], moments: list[int], dice: random.Random, *more: str) -> None:
    """Train with a kill after each of `moments` (steps), then to the end; equal to an unbroken training."""
    dumped = project.call("dump", "tiny.yaml", *more, timeout=600)
    assert dumped.code == 0, dumped.output
    unbroken = project.call("train", "tiny.yaml", *more, "name=unbroken", "dump_name=tiny", timeout=600)
    assert unbroken.code == 0, unbroken.output
    command = ("train", "tiny.yaml", *more)
    for target, moment in zip(targets, moments, strict=True):
        project.kill_once(command, target, lambda moment=moment: project.steps_so_far() >= moment, dice)
    finished = project.call(*command, timeout=600)
    assert finished.code == 0, finished.output
    steps = [step for step, _ in project.losses()]
    assert steps == list(range(1, len(steps) + 1))
    assert project.losses() == project.losses("unbroken")


@pytest.mark.timeout(300)
def test_a_dump_killed_three_times_ends_with_the_same_bytes(project: Project, dice: random.Random) -> None:
    dump_killed(project, ["conductor", "rank", "group"], [2, 6, 10], dice)


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_training_killed_four_times_ends_with_the_same_losses(project: Project, dice: random.Random) -> None:
    training_killed(project, ["conductor", "torchrun", "rank", "group"], [2, 5, 7, 10], dice)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_dump_killed_ten_times_ends_with_the_same_bytes(
    tmp_path: Path, smollm2_folder: Path, dice: random.Random
) -> None:
    project = Project.create(tmp_path, REAL)
    targets = [t for t, _ in zip(cycle(["conductor", "rank", "group"]), range(10), strict=False)]
    dump_killed(project, targets, sorted(dice.sample(range(1, 30), 10)), dice, *SHORTER)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(1800)
def test_a_real_training_killed_ten_times_ends_with_the_same_losses(
    tmp_path: Path, smollm2_folder: Path, dice: random.Random
) -> None:
    project = Project.create(tmp_path, REAL)
    targets = [t for t, _ in zip(cycle(["conductor", "torchrun", "rank", "group"]), range(10), strict=False)]
    training_killed(project, targets, sorted(dice.sample(range(1, 35), 10)), dice, *SHORTER, *LONGER)
