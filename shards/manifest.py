"""`dataset.json`: which shards belong to a dataset, with their hashes, and its own hash. Rows are in the shards.

A shard exists for readers only once it is listed here. The file is canonical: the same manifest always has the same
bytes, and a file with any other bytes is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import ShardError
from .files import canonical_json, write_atomic
from .header import FORMAT_NAME, FORMAT_VERSION, Header
from .schema import ShardPlan

MANIFEST_NAME = "dataset.json"
_RESTORE = "restore it from a copy, or move the folder away and run the stage again"


@dataclass(frozen=True)
class ShardEntry:
    """One sealed shard as listed in the manifest."""

    file: str
    first_row: int
    num_rows: int
    tokens: int
    scored: int
    bytes: int
    sha256: str
    dead_row_mass: float
    """Mean over the scored positions of the mass that padded vocabulary rows would have had."""

    @property
    def plan(self) -> ShardPlan:
        """The planned shard that this is; its index is in the file's name."""
        return ShardPlan(int(self.file.removeprefix("shard-").removesuffix(".arrow")), self.first_row, self.num_rows)


@dataclass(frozen=True)
class Manifest:
    """The content of `dataset.json`."""

    header: Header
    rows_per_batch: int
    shards: tuple[ShardEntry, ...] = ()
    complete: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def num_scored(self) -> int:
        return sum(shard.scored for shard in self.shards)

    @property
    def dead_row_mass(self) -> float:
        """Mean over all scored positions."""
        return sum(shard.dead_row_mass * shard.scored for shard in self.shards) / max(1, self.num_scored)

    def to_text(self) -> str:
        """The file's one possible content."""
        body: dict[str, Any] = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "complete": self.complete,
            "rows_per_batch": self.rows_per_batch,
            "header": self.header.to_json(),
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(body | {"sha256": _body_digest(body)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _body_digest(body: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of everything but the key `sha256`: the rule of every format version."""
    return hashlib.sha256(canonical_json({k: v for k, v in body.items() if k != "sha256"}).encode()).hexdigest()


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `dataset.json` so that a kill leaves the old or the new one."""
    write_atomic(folder / MANIFEST_NAME, manifest.to_text())


def load_manifest(folder: Path) -> Manifest:
    """Read and check `dataset.json`.

    Raises:
        ShardError: there is none, it is damaged, or its format version is newer than this program.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ShardError(f"{folder}: not a dataset (no {MANIFEST_NAME}); name the folder that holds it, e.g. .../train")
    try:
        text = path.read_bytes().decode()
        body = json.loads(text)
        sealed = body.get("sha256") == _body_digest(body)
    except (ValueError, AttributeError, RecursionError):
        raise ShardError(f"{path}: damaged (not the JSON that was written); {_RESTORE}") from None
    if not sealed:
        raise ShardError(f"{path}: damaged or edited (its sha256 does not fit its content); {_RESTORE}")
    if body["format"] != FORMAT_NAME:
        raise ShardError(
            f"{path}: format '{body['format']}', not '{FORMAT_NAME}'; name a folder written by this program"
        )
    if body["version"] > FORMAT_VERSION:
        raise ShardError(
            f"{path}: format version {body['version']} is newer than {FORMAT_VERSION}, the newest this program reads; "
            "update the program"
        )
    shards = tuple(ShardEntry(**entry) for entry in body["shards"])
    manifest = Manifest(Header.from_json(body["header"]), body["rows_per_batch"], shards, body["complete"])
    if manifest.to_text() != text:
        raise ShardError(f"{path}: damaged or edited (not byte by byte what was written); {_RESTORE}")
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether the dataset in `folder` is complete and all its files are there, by name and size: cheap, no hashing."""
    try:
        manifest = load_manifest(folder)
    except ShardError:
        return False
    files = ((folder / shard.file, shard.bytes) for shard in manifest.shards)
    return manifest.complete and all(path.is_file() and path.stat().st_size == size for path, size in files)


def plan_shards(num_rows: int, rows_per_shard: int) -> tuple[ShardPlan, ...]:
    """Cut `num_rows` rows into shards of `rows_per_shard` (the last may be shorter)."""
    assert num_rows >= 0
    assert rows_per_shard > 0
    return tuple(
        ShardPlan(index, first, min(rows_per_shard, num_rows - first))
        for index, first in enumerate(range(0, num_rows, rows_per_shard))
    )
