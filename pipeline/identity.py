"""What an input *is*, for digests: the content of a corpus file, the files of a model folder.

Corpus files count by sha256 (moving or touching one makes nothing stale); hashes of large ones are remembered in the
user cache by path, size and time. Model folders count by file names, sizes and times: hashing 16 GB at every start
would cost minutes, and the dump records the real hashes.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.files import cache_root, sha256_file, write_json
from teacher_dump.config import HFTeacher, Teacher

_REMEMBER_BYTES = 32 << 20


def hash_memory() -> Path:
    """The file in the user cache that remembers hashes of large files."""
    return cache_root() / "hashes.json"


def content_hash(path: Path) -> str:
    """sha256 of a file; that of a large unchanged one comes out of the user cache."""
    status = path.stat()
    if status.st_size < _REMEMBER_BYTES:
        return sha256_file(path)
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, json.JSONDecodeError):
        known = json.loads(hash_memory().read_text(encoding="utf-8"))
    if key not in known:
        known[key] = sha256_file(path)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            hash_memory().parent.mkdir(parents=True, exist_ok=True)
            write_json(hash_memory(), known)
    return known[key]


def corpus_identity(files: tuple[Path, ...]) -> list[list[str]]:
    """Name and content hash of every corpus file, in the order given.

    Raises:
        UserError: no file given, or one that is not there.
    """
    if not files:
        raise UserError("prepare.input: empty; name at least one corpus file, as in prepare.input=[texts.jsonl]")
    for path in files:
        if not path.exists():
            raise UserError(
                f"prepare.input: {path}: no such file (looked beside the configuration and in {Path.cwd()}); "
                "mend the path"
            )
        if not path.is_file():
            raise UserError(f"prepare.input: {path}: not a file; name the corpus files inside it one by one")
    return [[path.name, content_hash(path)] for path in files]


def teacher_identity(teacher: Teacher) -> dict[str, Any]:
    """Everything about the teacher that its distributions may depend on."""
    identity = teacher.model_dump(mode="json", exclude={"python"})
    if isinstance(teacher, HFTeacher):
        identity["model"] = place_identity(teacher.model)
        identity["tokenizer"] = place_identity(teacher.tokenizer)
    return identity


def place_identity(place: str | None) -> Any:
    """A local folder or file by what lies in it, a name by itself."""
    path = Path(place).expanduser() if place else None
    if path is None or not path.exists():
        return place
    files = sorted(p for p in path.rglob("*") if p.is_file() and ".cache" not in p.parts) if path.is_dir() else [path]
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def absolute_if_there(place: str | None) -> str | None:
    """A local path made independent of the working directory; hub names stay."""
    path = Path(place).expanduser() if place else None
    return str(path.resolve()) if path is not None and path.exists() else place
