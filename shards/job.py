"""How a phase runs as a process: one job file in, event lines out, and no life after its parent.

It lives on the ground floor because it is all that the conductor and the phases share besides the files.
Event lines are JSON objects on standard output with a key `event`:

    {"event": "progress", "stage", "done", "total", "unit", "text"}   how far; `text` is a short free remark
    {"event": "note", "text"}                                        one line worth reading
    {"event": "warning", "text"}
    {"event": "error", "kind": "user" | "internal", "text"}           why the phase ends
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UserError, from_os_error

Emit = Callable[[Mapping[str, Any]], None]

EXIT_OK, EXIT_FAILED, EXIT_USER = 0, 1, 2
_PR_SET_PDEATHSIG = 1


def print_event(event: Mapping[str, Any]) -> None:
    """The `Emit` of a phase process."""
    sys.stdout.write(json.dumps(dict(event), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def silent(event: Mapping[str, Any]) -> None:
    """An `Emit` for ranks other than 0 and for tests."""


def die_with_parent(sig: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere only the group helps)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), sig)


def guarded(run: Callable[[], None], emit: Emit) -> int:
    """Run a phase's body; turn the user's errors into one event and exit code 2.

    Anything else propagates as a traceback (exit code 1): it is our mistake.
    """
    try:
        run()
    except UserError as e:
        emit({"event": "error", "kind": "user", "text": str(e)})
        return EXIT_USER
    except OSError as e:
        user_error = from_os_error(e)
        if user_error is None:
            raise
        emit({"event": "error", "kind": "user", "text": str(user_error)})
        return EXIT_USER
    return EXIT_OK
