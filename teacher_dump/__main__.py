"""`python -m teacher_dump job.json`: one stage of phase one as a process of its own. Event lines on standard output.

Exit code 0, 1 (our mistake, with a traceback), 2 (the user's, one error event), 128 + signal when told to stop.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter, ValidationError

from shards.errors import UserError
from shards.job import die_with_parent, guarded, print_event

from .config import Job, PrepareJob

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Run the job file named by the only argument."""
    die_with_parent()
    for told in STOP_SIGNALS:
        signal.signal(told, _leave)
    return guarded(lambda: _run(arguments), print_event)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that temporary files are removed on the way out; a second signal must not cut that short."""
    for told in STOP_SIGNALS:
        signal.signal(told, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _run(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError("usage: python -m teacher_dump job.json")
    job = _read_job(Path(arguments[0]))
    # Heavy imports wait until it is known which half is wanted.
    if isinstance(job, PrepareJob):
        from . import prepare

        prepare.run(job, print_event)
    else:
        from . import dump

        dump.run(job, print_event)


def _read_job(path: Path) -> Job:
    if not path.is_file():
        raise UserError(f"{path}: no such job file; the conductor writes one, see `minicodformer run --help`")
    try:
        return TypeAdapter(Job).validate_json(path.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"{path}: {where}: {first['msg']}; write the job again") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
