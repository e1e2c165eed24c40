"""Seal rows into shards: temporary file -> fsync -> hash -> rename -> manifest. Reading is in `reader`.

A shard is visible only once the manifest lists it, so a kill at any moment costs the open shard and nothing else.
Equal rows, header and plan give equal bytes: fixed batches, fixed compression, one thread, no clock.
One writer a folder: the caller holds `files.folder_lock` (stages do, through `stage.claim`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa

from .columns import rows_to_batch
from .errors import ShardError
from .files import publish, sha256_file
from .header import Header
from .manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest, save_manifest
from .rows import Row
from .schema import ShardPlan, arrow_schema

BATCH_TOKENS = 8_192
"""Large enough to compress well, small enough that reading one row at random stays cheap."""


@dataclass
class _Counts:
    tokens: int = 0
    scored: int = 0
    dead_mass_sum: float = 0.0

    @property
    def dead_row_mass(self) -> float:
        return self.dead_mass_sum / max(1, self.scored)


class DatasetWriter:
    """Creates or resumes the dataset in `folder`: ask `missing`, `write` each of those shards, `close`."""

    def __init__(
        self, folder: Path, header: Header, plan: Sequence[ShardPlan], rows_per_batch: int | None = None
    ) -> None:
        """Begin, or find out what a killed predecessor left.

        `rows_per_batch`: rows of one record batch, which is what a reader decodes at once; default: as many as
        hold `BATCH_TOKENS` tokens when they are all of `header.max_length`.

        Raises:
            ShardError: the folder holds a dataset with another header, plan or batch size (the field is named), or
                shards without a manifest.
        """
        assert sum(shard.num_rows for shard in plan) == header.num_rows, "the plan does not cover the header's rows"
        self.folder = Path(folder)
        self.plan = tuple(plan)
        self._manifest = self._begin(Manifest(header, rows_per_batch or max(1, BATCH_TOKENS // header.max_length)))

    def missing(self) -> list[ShardPlan]:
        """Planned shards that are not sealed yet, in order."""
        sealed = {shard.file for shard in self._manifest.shards}
        return [shard for shard in self.plan if shard.file not in sealed]

    def write(self, plan: ShardPlan, rows: Iterable[Row], dead_row_mass: float | None = None) -> None:
        """Seal one shard with exactly the planned rows, in order. An exception leaves no shard and is passed on.

        `dead_row_mass`: the shard's mean, where rows that were read do not know it; None: from the captures.
        """
        assert plan in self.missing(), f"{plan.file} is sealed already or not planned"
        final = self.folder / plan.file
        temporary = self.folder / f".{plan.file}.tmp"
        try:
            counts = self._stream(temporary, plan, rows)
            entry = ShardEntry(
                file=plan.file,
                first_row=plan.first_row,
                num_rows=plan.num_rows,
                tokens=counts.tokens,
                scored=counts.scored,
                bytes=temporary.stat().st_size,
                sha256=sha256_file(temporary),
                dead_row_mass=counts.dead_row_mass if dead_row_mass is None else dead_row_mass,
            )
            publish(temporary, final)
            self._list([*self._manifest.shards, entry])
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(final)
            temporary.unlink(missing_ok=True)
            final.unlink(missing_ok=True)  # renamed, but the manifest could not be written
            raise

    def close(self) -> Manifest:
        """Mark the dataset complete; every planned shard must be sealed."""
        assert not self.missing(), f"{self.folder}: shards {[shard.index for shard in self.missing()]} are not written"
        if not self._manifest.complete:
            self._manifest = replace(self._manifest, complete=True)
            save_manifest(self.folder, self._manifest)
        return self._manifest

    def _begin(self, fresh: Manifest) -> Manifest:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        if not (self.folder / MANIFEST_NAME).exists():
            if any(self.folder.glob("shard-*.arrow")):
                raise ShardError(
                    f"{self.folder}: has shards but no {MANIFEST_NAME}; restore it, or move the folder away"
                )
            save_manifest(self.folder, fresh)
            return fresh
        found = load_manifest(self.folder)
        self._refuse_other_settings(found, fresh)
        kept = tuple(shard for shard in found.shards if self._is_whole(shard))
        if kept == found.shards:
            return found
        resumed = replace(found, shards=kept, complete=False)
        save_manifest(self.folder, resumed)
        return resumed

    def _refuse_other_settings(self, found: Manifest, ours: Manifest) -> None:
        difference = found.header.difference(ours.header)
        if difference is None and found.rows_per_batch != ours.rows_per_batch:
            difference = f"rows_per_batch: {found.rows_per_batch} against {ours.rows_per_batch}"
        planned = {shard.file: (shard.first_row, shard.num_rows) for shard in self.plan}
        for shard in found.shards:
            if difference is None and planned.get(shard.file) != (shard.first_row, shard.num_rows):
                difference = f"rows_per_shard: {shard.file} has {shard.num_rows} rows from {shard.first_row} on"
        if difference is not None:
            raise ShardError(
                f"{self.folder}: was begun with other settings ({difference}); move it away or choose another name"
            )

    def _is_whole(self, shard: ShardEntry) -> bool:
        """A listed shard whose file went missing or was cut is written again; hashes are `verify`'s business."""
        path = self.folder / shard.file
        return path.is_file() and path.stat().st_size == shard.bytes

    def _list(self, shards: list[ShardEntry]) -> None:
        manifest = replace(self._manifest, shards=tuple(sorted(shards, key=lambda shard: shard.first_row)))
        save_manifest(self.folder, manifest)
        self._manifest = manifest

    def _stream(self, path: Path, plan: ShardPlan, rows: Iterable[Row]) -> _Counts:
        header, counts = self._manifest.header, _Counts()
        schema = arrow_schema(header, plan, self._manifest.rows_per_batch)
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1), use_threads=False)
        next_row = plan.first_row
        with path.open("wb") as f, pa.ipc.new_file(f, schema, options=options) as out:
            for batch in _batches(rows, self._manifest.rows_per_batch):
                for row in batch:
                    assert header.derived or row.row_id == next_row, (
                        f"{plan.file}: row {row.row_id} came where {next_row} was due"
                    )
                    next_row += 1
                    counts.tokens += row.num_tokens
                    counts.scored += row.num_scored
                    if row.capture is not None:
                        counts.dead_mass_sum += row.capture.dead_row_mass * row.num_scored
                out.write_batch(rows_to_batch(batch, header, schema))
        assert next_row == plan.first_row + plan.num_rows, f"{plan.file}: the rows ended at {next_row}"
        return counts


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch
