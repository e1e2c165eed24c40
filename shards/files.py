"""Files that appear whole or not at all: atomic writes, digests, the lock of one writer a folder, the user cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

LOCK_NAME = ".lock"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/minicodformer`, by default `~/.cache/minicodformer`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minicodformer"


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. The thing to hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(temporary: Path, final: Path) -> None:
    """fsync `temporary`, rename it to `final`, fsync the folder: after this, `final` is whole for ever."""
    with temporary.open("rb") as f:
        os.fsync(f.fileno())
    temporary.replace(final)
    fsync_folder(final.parent)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` so that `path` is either the old file or the new one, also after a kill."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a broken one is the user's to know by name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise UserError(f"{path}:{e.lineno}: not JSON ({e.msg}); delete the file or restore it") from None


@contextlib.contextmanager
def folder_lock(folder: Path, *, patience_s: float = 5.0) -> Iterator[None]:
    """Hold `folder` for writing. A second writer is refused with the first one's name.

    The lock is the kernel's (flock): it dies with the process, so a killed run never leaves a stale one.
    `patience_s` covers the moment in which a killed predecessor is still being torn down.

    Raises:
        UserError: another live process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a+", encoding="utf-8") as f:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    f.seek(0)
                    owner = f.read().strip() or "an unnamed process"
                    raise UserError(
                        f"{folder}: already being written by {owner}; wait for it, stop it, or choose another name"
                    ) from None
                time.sleep(0.1)
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})")
        f.flush()
        try:
            yield
        finally:
            f.truncate(0)


@contextlib.contextmanager
def appears_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into; at the end it becomes `folder`, at an exception nothing is left.

    What a killed predecessor left in the hidden folder is thrown away by the next one.

    Raises:
        UserError: `folder` exists already, or another process is making it.
    """
    _refuse_existing(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    with folder_lock(temporary):
        _refuse_existing(folder)  # another process may have finished while this one waited for the lock
        _empty(temporary)
        try:
            yield temporary
            _refuse_existing(folder)
            fsync_folder(temporary)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_folder(folder.parent)
        (folder / LOCK_NAME).unlink()


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder}: exists already and is never overwritten; choose another name, or delete it")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()
