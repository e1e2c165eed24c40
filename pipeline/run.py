"""Runs the stages of a plan that are not done: makes room, starts the process, shows its events, stops cleanly.

Rendering is `progress`, processes are `process`, digests are `stages`. One conductor holds a run's folder; the
phases hold the folders they write.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from shards.errors import UserError
from shards.files import folder_lock, write_json
from shards.job import EXIT_USER
from shards.stage import claim, read_marker

from .config import RunConfig
from .process import StopSignals, run_phase, tail
from .progress import Screen
from .readers import reading, refuse_if_read
from .report import write_report
from .stages import Plan, Stage, num_gpus, num_ranks

_TREE = Path(__file__).resolve().parents[1]


class StageError(Exception):
    """A phase ended without success. `code` is the exit code for the command, `lines` what to say."""

    def __init__(self, code: int, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.code, self.lines = code, lines


def run_stages(plan: Plan, stages: Iterable[Stage], screen: Screen) -> None:
    """Bring `stages` to done, in order.

    Raises:
        StageError: a phase failed, or a signal stopped it.
        UserError: a folder is in another process's hands.
    """
    stages = list(stages)
    _check_batches(plan, stages)
    with folder_lock(plan.run_folder):
        write_json(plan.run_folder / "config.json", plan.config.model_dump(mode="json"))
        for stage in stages:
            if stage.is_done():
                screen.line(f"{stage.label}: done before, nothing to do ({short(stage.folder)})", style="dim")
            elif restore(stage):
                screen.line(f"{stage.label}: done before with these settings, brought back ({short(stage.folder)})")
            elif stage.job is None:
                _report(plan, stage, screen)
            else:
                reads_dump = stage.name in ("train", "eval")
                with reading(plan.dump_folder) if reads_dump else contextlib.nullcontext():
                    run_stage(stage, screen, ranks=num_ranks(_config_of(plan, stage)))


def run_stage(stage: Stage, screen: Screen, ranks: int = 1) -> None:
    """Run one stage as a process, whatever its state (a phase resumes what it finds).

    Raises:
        StageError: it failed, or a signal stopped it.
    """
    assert stage.job is not None, stage.name
    stage.job_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(stage.job_file, stage.job.model_dump(mode="json"))
    # What the log held before belongs to other attempts: keep one generation.
    if stage.log.exists():
        stage.log.replace(stage.log.with_suffix(".log.1"))
    screen.stage_begins(stage.label)
    ended = "failed"
    with StopSignals().caught() as stop:
        try:
            outcome = run_phase(
                phase_command(stage, ranks),
                phase_environment(ranks if stage.name == "train" else 0),
                stage.log,
                screen.event,
                screen.tick,
                stop,
            )
            if outcome.interrupted is not None:
                ended = "stopped"
            elif outcome.code == 0:
                ended = "done"
        finally:
            screen.stage_ends(ended)
    if outcome.interrupted is not None:
        raise StageError(128 + outcome.interrupted, [f"{stage.label}: stopped; what is whole is kept"])
    if screen.errors:
        raise StageError(EXIT_USER, list(dict.fromkeys(screen.errors)))
    if outcome.code != 0:
        raise StageError(1, _post_mortem(stage, outcome.code))
    assert stage.is_done(), f"{stage.label} ended well but left no finished marker in {stage.folder}"


def phase_command(stage: Stage, ranks: int) -> list[str]:
    """The command line of a stage's process."""
    python = stage.python or sys.executable
    job = str(stage.job_file)
    match stage.name:
        case "prepare" | "dump":
            return [python, "-m", "teacher_dump", job]
        case "train":
            torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
            return [*torchrun, "-m", "student_train", job]
        case "eval" | "export":
            return [python, "-m", "student_train", job]
    raise AssertionError(stage.name)


def generate_command(job_file: Path) -> list[str]:
    """The command line of a student that writes."""
    return [sys.executable, "-m", "student_train", str(job_file)]


def phase_environment(ranks: int = 0) -> dict[str, str]:
    """Our environment plus what the phases need; what the user has set stays. `ranks` > 0: under torchrun.

    PYTHONSAFEPATH keeps the working directory off the import path: a folder called `shards` there is data, not code.
    """
    inherited = os.environ.get("PYTHONPATH")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_TREE), *([inherited] if inherited else [])]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
    }
    # Threads that wait asleep: on a machine with other work, spinning ones cost a factor of 2 to 4 (measured).
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if ranks:
        # torchrun would set 1 and warn; the phase sets its own number of threads from the config.
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    if num_gpus() == 0:
        env.setdefault("DS_ACCELERATOR", "cpu")
        env.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform.startswith("linux") else "lo0")
    return env


def restore(stage: Stage) -> bool:
    """Make the stage's folder its own: set other settings' results aside, bring ours back. True if ours are done.

    Results lie aside as `<folder>.<first 8 of their digest>`.

    Raises:
        UserError: a live process writes there, or a live run reads the dump.
    """
    marker = read_marker(stage.folder)
    if marker is not None and (marker.stage, marker.digest) != (stage.name, stage.digest):
        if stage.name in ("prepare", "dump"):
            refuse_if_read(stage.folder.parent)
        with folder_lock(stage.folder):
            aside = stage.folder.with_name(f"{stage.folder.name}.{marker.digest[:8]}")
            if aside.exists():
                raise UserError(f"{aside}: in the way of setting {stage.folder} aside; move or delete it")
            stage.folder.rename(aside)
        marker = None
    wanted = stage.folder.with_name(f"{stage.folder.name}.{stage.digest[:8]}")
    if marker is None and wanted.exists() and _is_free(stage.folder):
        with folder_lock(wanted):
            wanted.rename(stage.folder)
    return stage.is_done()


def _check_batches(plan: Plan, stages: Sequence[Stage]) -> None:
    """Refuse a global batch that does not divide now, not after hours of dumping."""
    for stage in stages:
        train = _config_of(plan, stage).train
        if stage.name != "train" or train.global_batch is None:
            continue
        ranks = num_ranks(_config_of(plan, stage))
        unit = train.batch_size * ranks
        if train.global_batch % unit:
            below = train.global_batch // unit * unit
            nearest = f"{below} and {below + unit}" if below else str(unit)
            raise UserError(
                f"train.global_batch: {train.global_batch} does not divide into batch_size {train.batch_size} x "
                f"{ranks} ranks; the nearest that do: {nearest}"
            )


def _config_of(plan: Plan, stage: Stage) -> RunConfig:
    return plan.students[stage.variant].config if stage.variant else plan.config


def _is_free(folder: Path) -> bool:
    """Nothing there, or nothing but the lock of a process that has gone; such a lock is removed."""
    if not folder.exists():
        return True
    if {p.name for p in folder.iterdir()} - {".lock"}:
        return False
    with folder_lock(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
    return True


def _report(plan: Plan, stage: Stage, screen: Screen) -> None:
    with claim(stage.folder, stage.name, stage.digest) as folder:
        write_report(plan, stage.folder / "report.html")
        folder.finish({"page": "report.html"})
    screen.line(f"report: written ({short(stage.folder / 'report.html')})")


def _post_mortem(stage: Stage, code: int) -> list[str]:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if code == -9:
        how += " (the system kills so when memory is short)"
    return [f"{stage.label}: failed ({how}); the end of {short(stage.log)}:", *tail(stage.log).splitlines()]


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
