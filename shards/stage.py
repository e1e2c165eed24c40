"""The marker of a stage's folder: which settings it belongs to, and whether it is done.

Done means "same digest", never "the folder exists". The phase writes the marker; the conductor reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import folder_lock, read_json, write_json
from .manifest import is_whole

MARKER = "stage.json"


@dataclass(frozen=True)
class StageMarker:
    """Content of `stage.json`."""

    stage: str
    digest: str
    done: bool = False
    summary: dict[str, Any] = field(default_factory=dict)


def read_marker(folder: Path) -> StageMarker | None:
    """The folder's marker, or None where no stage has begun."""
    path = folder / MARKER
    return StageMarker(**read_json(path)) if path.exists() else None


DATASETS: dict[str, tuple[str, ...]] = {"prepare": ("train", "val"), "dump": ("train", "val")}
"""Stages that write datasets, and the folders of these inside the stage's own."""


def is_done(folder: Path, stage: str, digest: str) -> bool:
    """Finished with these settings, and its datasets are still there (a lost shard makes the stage run again)."""
    marker = read_marker(folder)
    if marker is None or not marker.done or (marker.stage, marker.digest) != (stage, digest):
        return False
    return all(is_whole(folder / dataset) for dataset in DATASETS.get(stage, ()))


class StageFolder:
    """A claimed folder; `finish` marks it done."""

    def __init__(self, folder: Path, marker: StageMarker) -> None:
        self.folder = folder
        self._marker = marker

    def finish(self, summary: dict[str, Any]) -> None:
        """Everything is written: mark the folder done, with figures for the end screen."""
        done = StageMarker(self._marker.stage, self._marker.digest, True, summary)
        write_json(self.folder / MARKER, asdict(done))


@contextlib.contextmanager
def claim(folder: Path, stage: str, digest: str) -> Iterator[StageFolder]:
    """Lock `folder` and mark it as this stage's, under way.

    Raises:
        UserError: another process writes there, or the folder belongs to other settings.
    """
    with folder_lock(folder):
        marker = read_marker(folder)
        if marker is not None and (marker.stage, marker.digest) != (stage, digest):
            raise UserError(
                f"{folder}: holds stage '{marker.stage}' of other settings (digest {marker.digest[:8]}, "
                f"wanted {digest[:8]}); move it away or choose another name"
            )
        ours = StageMarker(stage, digest)
        write_json(folder / MARKER, asdict(ours))
        yield StageFolder(folder, ours)
