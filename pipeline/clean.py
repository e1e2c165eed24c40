"""What may be deleted without losing a current result: user caches, stage folders set aside. Deletes on request."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.files import cache_root, folder_lock

_ASIDE = re.compile(r"(corpus|shards|train|eval|export|report)\.[0-9a-f]{8}")


@dataclass(frozen=True)
class Leftover:
    """One thing that may go."""

    what: str
    path: Path
    num_bytes: int
    lock: Path | None
    """Folder whose lock its writer holds."""

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in (asdict(self) | {"path": str(self.path)}).items() if k != "lock"}


def leftovers(root: Path) -> list[Leftover]:
    """Everything removable: caches first, then results of earlier settings under `root`."""
    return [*_caches(cache_root()), *_set_aside(root)]


def remove(item: Leftover) -> None:
    """Delete it.

    Raises:
        UserError: a live process writes there.
    """
    if item.lock is None:
        _delete(item.path)
        return
    with folder_lock(item.lock, patience_s=0.0):
        _delete(item.path)


def human(num_bytes: int) -> str:
    """`1536` -> `1.5 kB` (decimal units)."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _caches(cache: Path) -> Iterator[Leftover]:
    for entry in sorted(cache.iterdir()) if cache.is_dir() else []:
        if entry.name != "teachers":
            yield Leftover("cache", entry, _bytes_of(entry), None)
            continue
        for teacher in sorted(entry.iterdir()):
            if teacher.name != ".locks":
                name = teacher.name.removeprefix(".").removesuffix(".tmp")
                what = "converted teacher" if name == teacher.name else "unfinished teacher conversion"
                yield Leftover(what, teacher, _bytes_of(teacher), entry / ".locks" / name)


def _set_aside(root: Path) -> Iterator[Leftover]:
    for pattern in ("dumps/*/*.*", "runs/*/*.*", "runs/*/*/*.*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir() and _ASIDE.fullmatch(folder.name):
                yield Leftover("results of earlier settings", folder, _bytes_of(folder), folder)


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if not p.is_dir())


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
