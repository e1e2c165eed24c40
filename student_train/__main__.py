"""One job file in, event lines out: `torchrun --standalone -m student_train job.json`, or plain python for the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from shards.errors import UserError
from shards.job import EXIT_USER, Emit, die_with_parent, guarded, print_event, silent

from .config import EvalJob, ExportJob, GenerateJob, Job, ScoreJob, TrainJob

USAGE = "usage: python -m student_train JOB.json   (a train job: torchrun --standalone --nproc_per_node N -m ...)"


def read_job(path: Path) -> Job:
    """Parse and check a job file.

    Raises:
        UserError: not readable, or not a job.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such job file; {USAGE}") from None
    try:
        job: Job = TypeAdapter(Job).validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; let minicodformer write it"
        ) from None
    return job


def run_job(job: Job, emit: Emit) -> None:
    """Hand the job to its stage."""
    match job:
        case TrainJob():
            from .loop import run as train

            train(job, emit)
        case EvalJob():
            from .evaluate import run as evaluate

            evaluate(job, emit)
        case GenerateJob():
            from .generate import run as generate

            generate(job, emit)
        case ExportJob():
            from .export import run as export

            export(job, emit)
        case ScoreJob():
            from .answer import run as answer

            answer(job, emit)


def main() -> int:
    """Exit code of this process."""
    die_with_parent()
    emit = print_event if os.environ.get("RANK", "0") == "0" else silent
    if len(sys.argv) != 2:
        emit({"event": "error", "kind": "user", "text": USAGE})
        return EXIT_USER
    try:
        return guarded(lambda: run_job(read_job(Path(sys.argv[1])), emit), emit)
    except SystemExit as stopped:
        return int(stopped.code or 0)


def leave(code: int) -> NoReturn:
    """End at once: everything is written, and native threads (gloo, Arrow) now and then abort in Python's teardown,
    which torchrun would report as a failed rank.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
