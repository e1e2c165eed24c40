"""Convert a whole dump folder: its datasets, and the teacher's files beside them, so that students train from OUT."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shards import Manifest, UserError, convert
from shards.header import Encoding
from shards.manifest import load_manifest

TEACHER = "teacher"


@dataclass(frozen=True)
class Converted:
    """One dataset that was converted."""

    source: Path
    out: Path
    encoding: str
    rows: int
    scored: int
    shards: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"source": str(self.source), "out": str(self.out)}


def convert_folder(
    folder: Path, datasets: Sequence[Path], out: Path, encoding: Encoding, say: Callable[[str], None]
) -> list[Converted]:
    """Convert `datasets` (the folder itself, or folders inside it) to the same places under `out`.

    A dataset that an interrupted conversion has finished is taken as it is, if it is this conversion's.

    Raises:
        UserError: `out` lies inside `folder` or is it, everything is converted already, or `shards.convert` refuses.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies in the folder to convert; choose a place outside of it")
    places = [(source, out / source.relative_to(folder)) for source in datasets]
    finished = {place for source, place in places if _is_finished(source, place, encoding)}
    if len(finished) == len(places) and not _lacks_teacher(folder, out):
        raise UserError(f"{out}: is converted already, and never overwritten; choose another folder")
    results = []
    for source, place in places:
        if place in finished:
            manifest = load_manifest(place)
        else:
            manifest = convert(source, place, encoding, partial(_say_shard, say, place))
        results.append(_result(source, place, manifest))
    if _lacks_teacher(folder, out):
        temporary = out / f".{TEACHER}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder / TEACHER, temporary)
        temporary.replace(out / TEACHER)
    return results


def _say_shard(say: Callable[[str], None], place: Path, done: int, total: int) -> None:
    say(f"{place}: shard {done} of {total}")


def _is_finished(source: Path, place: Path, encoding: Encoding) -> bool:
    if not (place / "dataset.json").exists() or not (source / "dataset.json").exists():
        return False
    ours, theirs = load_manifest(source), load_manifest(place)
    same_rows = [shard.plan for shard in ours.shards] == [shard.plan for shard in theirs.shards]
    return theirs.complete and same_rows and ours.header.with_encoding(encoding) == theirs.header


def _lacks_teacher(folder: Path, out: Path) -> bool:
    return (folder / TEACHER).is_dir() and not (out / TEACHER).exists()


def _result(source: Path, out: Path, manifest: Manifest) -> Converted:
    before = sum(shard.bytes for shard in load_manifest(source).shards)
    return Converted(
        source=source,
        out=out,
        encoding=manifest.header.encoding,
        rows=manifest.header.num_rows,
        scored=manifest.num_scored,
        shards=len(manifest.shards),
        bytes_before=before,
        bytes_after=sum(shard.bytes for shard in manifest.shards),
    )
