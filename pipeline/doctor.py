"""What this machine has, what is missing, and the command that mends it. Reads metadata: imports no tensor library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from shards.files import cache_root

from .clean import human
from .names import DISTRIBUTION, TREE, foreign_names, shared_names

_RUN_BYTES = 3_000_000_000
"""What the quickstart wants free: a converted teacher, shards, checkpoints."""
_SET_UP = "./run_pipeline.sh --setup-only"
_EXTRAS = {"teacher": "phase one", "train": "phase two", "serve": "the HTTP server", "dev": "tests"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `missing` is needed; `note` is good to know."""

    state: Literal["ok", "note", "missing"]
    what: str
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def examine(root: Path) -> list[Finding]:
    """Look at everything; nothing is changed, fetched or started but `nvidia-smi`."""
    return [
        _python(),
        *_names(),
        *_installation(),
        _torch_build(),
        _gpu(),
        _disk("results", root),
        _disk("user cache", cache_root()),
        _teacher(),
        _optional("npm", "fetches the Qwen3 tokenizer for tests"),
    ]


def _python() -> Finding:
    return Finding("ok", "Python", f"{sys.version.split()[0]} ({sys.executable})")


def _names() -> Iterator[Finding]:
    problems = [*foreign_names(), *shared_names()]
    for line in problems:
        found, _, remedy = line.rpartition("; ")
        yield Finding("missing", "package names", found, remedy.removeprefix("mend it: "))
    if not problems:
        yield Finding("ok", "package names", f"pipeline, teacher_dump, student_train, shards are those of {TREE}")


def _installation() -> Iterator[Finding]:
    """This distribution and the requirements of its extras."""
    try:
        wanted = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        yield Finding("missing", "installation", f"{DISTRIBUTION} is not installed in {sys.prefix}", _SET_UP)
        return
    for extra in _EXTRAS:
        yield _extra(extra, wanted)


def _extra(extra: str, wanted: list[str]) -> Finding:
    """Every requirement of one extra: installed or not (pip has checked versions; missing ones are the trouble)."""
    names = [_name_of(r) for r in wanted if f'extra == "{extra}"' in r.replace("'", '"')]
    absent = [name for name in names if _version(name) is None]
    what = f"{extra} ({_EXTRAS[extra]})"
    if absent:
        state: Literal["note", "missing"] = "note" if extra == "dev" else "missing"
        return Finding(
            state, what, f"not installed: {', '.join(absent)}", f"{_SET_UP}, or: pip install -e '.[{extra}]'"
        )
    return Finding("ok", what, ", ".join(f"{name} {_version(name)}" for name in names))


def _torch_build() -> Finding:
    found = _version("torch")
    if found is None:
        return Finding("missing", "torch", "not installed", _SET_UP)
    if "+cpu" in found and shutil.which("nvidia-smi"):
        return Finding(
            "note", "torch", f"{found} is a CPU build, but there is a GPU driver", "install a CUDA build of torch"
        )
    return Finding("ok", "torch", found)


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("note", "GPU", "no NVIDIA driver; everything runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return Finding(
            "note", "GPU", f"nvidia-smi does not answer ({e}); everything runs on the CPU", "look at the driver"
        )
    return Finding("ok", "GPU", "; ".join(listed.strip().splitlines()))


def _disk(what: str, place: Path) -> Finding:
    place = place.expanduser().absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{human(free)} free at {place}"
    if not os.access(there, os.W_OK):
        return Finding(
            "missing",
            f"disk for {what}",
            f"{there} is not writable",
            "choose another folder (root=..., XDG_CACHE_HOME=...)",
        )
    if free < _RUN_BYTES:
        remedy = f"free some (minicodformer clean), the quickstart wants {human(_RUN_BYTES)}"
        return Finding("note", f"disk for {what}", found, remedy)
    return Finding("ok", f"disk for {what}", found)


def _teacher() -> Finding:
    folder = cache_root() / "teachers"
    ready = sorted(p.parent.name for p in folder.glob("*/complete.json")) if folder.is_dir() else []
    if ready:
        return Finding("ok", "converted teachers", f"{', '.join(ready)} in {folder}")
    return Finding("note", "converted teachers", f"none in {folder}; the first run fetches (93 MB) and converts one")


def _optional(program: str, why: str) -> Finding:
    place = shutil.which(program)
    return Finding("ok" if place else "note", program, place or f"not installed ({why}); nothing else needs it")


def _name_of(requirement: str) -> str:
    """`torch<2.14,>=2.11; extra == "train"` -> `torch`."""
    end = next((i for i, c in enumerate(requirement) if c not in "-_." and not c.isalnum()), len(requirement))
    return requirement[:end]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
