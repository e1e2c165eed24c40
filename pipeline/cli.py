"""The command `minicodformer` (also `python -m pipeline`): its verbs, and how its errors look.

Exit codes: 0, 1 (failed), 2 (the user's to mend), 128 + n (stopped by signal n). Errors go to standard error, one
line each, beginning with `error:`.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import typer

from shards.errors import UserError, from_os_error
from shards.job import EXIT_FAILED, EXIT_USER

from .commands import generate, look, serve, stages, upkeep, view
from .names import foreign_names
from .run import StageError

app = typer.Typer(
    name="minicodformer",
    help="Distil a large language model into a small LTC-NCP student: dump the teacher once, train from the shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for _commands in (stages, generate, serve, look, view, upkeep):
    _commands.add(app)


def main() -> None:
    """Run a command and leave with its exit code."""
    sys.exit(_guarded())


def _guarded() -> int:
    try:
        if foreign := foreign_names():
            raise UserError("\n".join(foreign))
        app()
    except StageError as e:
        _say_failed(e)
        return e.code
    except UserError as e:
        _say_errors(str(e).splitlines())
        return EXIT_USER
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; end without a traceback
        return EXIT_FAILED
    except OSError as e:
        user_error = from_os_error(e)
        if user_error is None:
            raise
        _say_errors([str(user_error)])
        return EXIT_USER
    return 0


def _say_failed(failure: StageError) -> None:
    if failure.code == EXIT_USER:
        _say_errors(failure.lines)
        return
    _say_errors(failure.lines[:1])
    for line in failure.lines[1:]:
        typer.echo(f"    {line}", err=True)
    typer.echo(f"to go on where it stopped: {command_line()}", err=True)


def _say_errors(lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"error: {line}", err=True)


def command_line() -> str:
    """The command as the user gave it (run_pipeline.sh leaves its own words in the environment)."""
    given = os.environ.get("MINICODFORMER_COMMAND")
    if given:
        return given
    program = Path(sys.argv[0])
    start = ["python", "-m", "pipeline"] if program.name == "__main__.py" else [program.name]
    return shlex.join([*start, *sys.argv[1:]])
