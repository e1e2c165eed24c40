"""A dump is shared by many students: none may lose it while it reads because another run wants other settings."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError

_NAME = ".readers"


@contextlib.contextmanager
def reading(dump_folder: Path) -> Iterator[None]:
    """Hold the dump in place; any number of runs may (a shared kernel lock, gone with the process)."""
    with (dump_folder / _NAME).open("a") as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        yield


def refuse_if_read(dump_folder: Path) -> None:
    """Called before a dump's folders are set aside.

    Raises:
        UserError: a live run reads from it.
    """
    path = dump_folder / _NAME
    if not path.exists():
        return
    with path.open("a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{dump_folder}: another run is reading it, and this one has other settings for it; "
                "wait for that run, or give this one a dump_name of its own"
            ) from None
