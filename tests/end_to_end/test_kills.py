"""SIGKILL at random moments: no orphan writes on, a rerun ends with the same bytes and the same losses."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from harness import SAMPLE, Project, assert_nobody_writes, family, kill, pick, wait_until

SEED = int(os.environ.get("KILL_SEED", "0"))


def shards_so_far(project: Project) -> int:
    return len(list(project.shards.glob("*/shard-*.arrow")))


def steps_so_far(project: Project) -> int:
    path = project.training / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(project: Project, command: tuple[str, ...], target: str, progress, at: int, dice: random.Random) -> None:
    """Start `command`, and kill `target` a random moment after `progress` has reached `at`."""
    process = project.start(*command)
    wait_until(lambda: progress(project) >= at, process, f"{progress.__name__} >= {at}")
    time.sleep(dice.uniform(0, 0.1))
    assert process.poll() is None, "it ended before the kill: make the work longer"
    members = family(process)
    kill(pick(members, target, dice))
    assert_nobody_writes(project.folder, members)


@pytest.fixture
def straight(tmp_path: Path, tiny_teacher_folder: Path) -> Project:
    """The same project, to be run without any interruption."""
    return Project.create(tmp_path / "straight", tiny_teacher_folder, SAMPLE)


@pytest.mark.timeout(300)
def test_a_dump_killed_three_times_ends_with_the_same_bytes(project: Project, straight: Project) -> None:
    dice = random.Random(SEED)
    for target, at in (("conductor", 2), ("rank", 6), ("group", 10)):
        kill_once(project, ("dump", "tiny.yaml"), target, shards_so_far, at, dice)
    finished = project.call("dump", "tiny.yaml")
    assert finished.code == 0, finished.output
    uninterrupted = straight.call("dump", "tiny.yaml")
    assert uninterrupted.code == 0, uninterrupted.output
    assert project.shard_bytes() == straight.shard_bytes()


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_training_killed_four_times_ends_with_the_same_losses(project: Project) -> None:
    dice = random.Random(SEED)
    assert project.call("dump", "tiny.yaml").code == 0
    uninterrupted = project.call("train", "tiny.yaml", "name=straight")
    assert uninterrupted.code == 0, uninterrupted.output
    for target, at in (("conductor", 2), ("torchrun", 5), ("rank", 7), ("group", 10)):
        kill_once(project, ("train", "tiny.yaml"), target, steps_so_far, at, dice)
    finished = project.call("train", "tiny.yaml")
    assert finished.code == 0, finished.output
    assert [step for step, _ in project.losses()] == list(range(1, 13))
    assert project.losses() == project.losses("straight")
