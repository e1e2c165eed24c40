"""Checkpoints that a kill cannot spoil: whole with a marker, or not there.

A folder's existence means nothing: DeepSpeed creates it first and fills it file by file. So the order is: all ranks
write, rank 0 makes the files durable, writes `COMPLETE.json` with their sizes, then `latest`, then prunes old ones.
Resuming picks the newest folder whose marker matches its files and loads it by explicit name, by way of its universal
form (`universal`) when another number of ranks wrote it.
(Ranks are assumed to share one disk.)
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.errors import UserError
from shards.files import fsync_folder, read_json, write_atomic, write_json

from . import universal
from .average import WeightAverage
from .ranks import on_rank_0, rank, world

COMPLETE = "COMPLETE.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Cursor:
    """Where a run stands; the data order follows from `step` alone."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time so far, over all starts."""
    tokens: int = 0
    """Input tokens seen by all ranks."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl at this step."""
    finished: bool = False
    """The run ended by its own rule (steps, epochs or time box)."""


@dataclass(frozen=True)
class Complete:
    """Content of COMPLETE.json."""

    step: int
    world: int
    global_batch: int
    digest: str
    files: dict[str, int]
    """Path inside the folder -> bytes."""


def complete_checkpoints(root: Path) -> list[tuple[Path, Complete]]:
    """Whole checkpoints under `root`, oldest first. Folders without a matching marker are ignored."""
    found = []
    for marker in root.glob(f"{PREFIX}*/{COMPLETE}"):
        try:
            complete = Complete(**read_json(marker))
        except (UserError, TypeError):
            continue
        if all(_size(marker.parent / name) == size for name, size in complete.files.items()):
            found.append((marker.parent, complete))
    return sorted(found, key=lambda item: (item[1].step, item[0].name))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from."""

    tag: str
    step: int
    world: int
    """Ranks that wrote it."""
    global_batch: int
    """Rows of one step, which decide what the remaining steps read."""


def newest(root: Path, *, digest: str) -> Found | None:
    """What to resume from; None: start anew.

    Raises:
        UserError: the newest whole checkpoint belongs to other settings.
    """
    checkpoints = complete_checkpoints(root)
    if not checkpoints:
        return None
    folder, complete = checkpoints[-1]
    if complete.digest != digest:
        raise UserError(
            f"{folder}: belongs to other settings (digest {complete.digest[:8]}, wanted {digest[:8]}); "
            "move it away or choose another name"
        )
    return Found(folder.name, complete.step, complete.world, complete.global_batch)


@dataclass(frozen=True)
class Keeping:
    """What every checkpoint of a run is marked with, and how many of them stay."""

    digest: str
    ranks: int
    global_batch: int
    keep: int


def mark_complete(root: Path, tag: str, step: int, how: Keeping) -> None:
    """Make the files of `tag` durable, mark it, point `latest` at it, prune what is older than the newest few."""
    folder = root / tag
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
    for path in files:
        with path.open("rb") as f:
            os.fsync(f.fileno())
    for inner in {p.parent for p in files}:
        fsync_folder(inner)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in files}
    write_json(folder / COMPLETE, asdict(Complete(step, how.ranks, how.global_batch, how.digest, sizes)))
    fsync_folder(root)
    write_atomic(root / "latest", tag)
    kept = {path.name for path, _ in complete_checkpoints(root)[-how.keep :]}
    for path in root.glob(f"{PREFIX}*"):
        if path.name not in kept:
            (path / COMPLETE).unlink(missing_ok=True)  # first, so that a kill in here leaves no half with a marker
            shutil.rmtree(path)


def save(engine: Any, root: Path, cursor: Cursor, how: Keeping, average: WeightAverage | None = None) -> None:
    """Save a checkpoint of `cursor.step`; every rank calls it."""
    tag = f"{PREFIX}{cursor.step:08d}{'-final' if cursor.finished else ''}"  # never over a checkpoint of the same step
    on_rank_0(lambda: shutil.rmtree(root / tag, ignore_errors=True))
    state = {"cursor": asdict(cursor), "random": _random_state()}
    try:
        engine.save_checkpoint(str(root), tag=tag, client_state=state, save_latest=False)
        if average is not None:
            average.save(root / tag)
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "PytorchStreamWriter" not in str(e):
            raise
        raise UserError(
            f"{root / tag}: the checkpoint could not be written ({str(e).splitlines()[0]}); free disk space and "
            "run the same command again (it goes on from the checkpoint before)"
        ) from None
    torch.distributed.barrier()
    on_rank_0(lambda: mark_complete(root, tag, cursor.step, how))


def find(root: Path, *, digest: str) -> Found | None:
    """`newest`, agreed on by all ranks."""
    return on_rank_0(lambda: newest(root, digest=digest))


def load(engine: Any, root: Path, found: Found) -> Cursor:
    """Load a checkpoint into the engine and restore the random states; every rank calls it.

    One of another number of ranks needs an engine configured to load universal checkpoints.
    """
    if found.world == world():
        path, state = engine.load_checkpoint(str(root), tag=found.tag)
    else:
        tag = on_rank_0(lambda: universal.convert(root, found.tag))
        with universal.mended(engine):
            path, state = engine.load_checkpoint(str(root), tag=tag)
    assert path is not None, f"rank {rank()}: DeepSpeed could not load {root / found.tag}"
    _restore_random_state(state["random"])
    return Cursor(**state["cursor"])


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())
