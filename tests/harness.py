"""Drive the command line as a user does: start it, watch it, kill it, read what it left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

SAMPLE = Path(__file__).parents[1] / "configs" / "quickstart" / "english.txt"

TINY_CONFIG = {
    "name": "tiny",
    "prepare": {"train_size": 60, "val_size": 8, "max_length": 64, "max_tokens": 12_000},
    "dump": {"rows_per_shard": 8, "batch_tokens": 128, "probe_positions": 32, "threads": 1},
    "train": {
        "student": {
            "hidden_size": 32,
            "encoder": {"layers": 1, "heads": 2, "window": 32},
            "blocks": 1,
            "cell": {"units": 32},
            "embedding_size": 16,
        },
        "batch_size": 2,
        "global_batch": 8,
        "steps": 12,
        "checkpoint_every": 3,
        "ranks": 2,
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    },
    "eval": {"max_new_tokens": 8},
}


@dataclass
class Finished:
    code: int
    output: str


@dataclass
class Project:
    """A working folder with a config; `run` is `minicodformer run tiny.yaml`."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, teacher: dict[str, str]) -> Project:
        """`tiny.yaml` with this teacher, and a corpus of real text."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "corpus.txt").write_text(SAMPLE.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
        config = TINY_CONFIG | {"teacher": teacher}
        config["prepare"] = TINY_CONFIG["prepare"] | {"input": ["corpus.txt"]}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return cls(folder)

    @property
    def shards(self) -> Path:
        return self.folder / "dumps" / "tiny" / "shards"

    @property
    def training(self) -> Path:
        return self.folder / "runs" / "tiny" / "train"

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", *args]

    def call(self, *args: str, timeout: float = 200, **environment: str) -> Finished:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*args),
            cwd=self.folder,
            env=child_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout)

    def start(self, *args: str) -> psutil.Popen:
        """Start a command in a session of its own, output into `started.log`."""
        with (self.folder / "started.log").open("ab") as log:
            return psutil.Popen(
                self.command(*args),
                cwd=self.folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def shard_bytes(self) -> dict[str, bytes]:
        """Every file of the dump by relative path, the stage marker (it holds times) and locks left out."""
        return {
            str(p.relative_to(self.shards)): p.read_bytes()
            for p in sorted(self.shards.rglob("*"))
            if p.is_file() and p.name not in ("stage.json", ".lock")
        }

    def shards_so_far(self) -> int:
        return len(list(self.shards.glob("*/shard-*.arrow")))

    def steps_so_far(self) -> int:
        path = self.training / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def kill_once(
        self, command: tuple[str, ...], target: str, reached: Callable[[], bool], dice: random.Random
    ) -> None:
        """Start `command` and kill `target` (see `pick`) a random moment after `reached`; nobody may write on."""
        process = self.start(*command)
        wait_until(reached, process, "the moment to kill")
        time.sleep(dice.uniform(0, 0.1))
        assert process.poll() is None, "it ended before the kill: make the work longer"
        members = family(process)
        kill(pick(members, target, dice))
        assert_nobody_writes(self.folder, members)

    def losses(self, run: str = "tiny") -> list[tuple[int, str]]:
        """(step, loss with all its digits) of every metrics line of a run."""
        path = self.folder / "runs" / run / "train" / "metrics.jsonl"
        metrics = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [(m["step"], repr(m["loss"])) for m in metrics]


def child_environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def wait_until(condition: Callable[[], bool], process: psutil.Popen, what: str, timeout: float = 120) -> None:
    """Poll until `condition`; fails when the process ends first or the time is up."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(0.02)


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and everything below it."""
    return [process, *process.children(recursive=True)]


def commanding(processes: list[psutil.Process], word: str) -> list[psutil.Process]:
    """Those whose command line contains `word`."""
    found = []
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if word in " ".join(p.cmdline()):
                found.append(p)
    return found


def pick(members: list[psutil.Process], target: str, dice: random.Random) -> list[psutil.Process]:
    """Whom a kill hits: `conductor`, `torchrun`, `rank` (or the dump process), or `group` (everybody)."""
    match target:
        case "conductor":
            return members[:1]
        case "torchrun":
            return commanding(members, "torch.distributed.run")[:1]
        case "rank":
            workers = [p for p in members[1:] if not commanding([p], "torch.distributed.run")]
            return [dice.choice(workers)]
        case "group":
            return members
    raise AssertionError(target)


def kill(processes: list[psutil.Process]) -> None:
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.send_signal(signal.SIGKILL)


def assert_nobody_writes(folder: Path, members: list[psutil.Process], patience: float = 45) -> None:
    """All of `members` are gone, and nothing in `folder` changes any more."""
    _, alive = psutil.wait_procs(members, timeout=patience)
    alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"still running {patience} s after the kill: {alive}"
    before = snapshot(folder)
    time.sleep(0.5)
    assert snapshot(folder) == before, "a file changed after every process had ended"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
    }
