"""Read a finished dataset: random access by row, memory-mapped, with a small cache of decoded batches.

Files are opened at the first read of each process, so a `Dataset` may be forked, pickled and sent to workers.
A file is hashed when it is opened: Arrow has no checksum, and a flipped bit would be read as a wrong number. That the
numbers make sense is `verify`'s to find out.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from .columns import Columns, batch_to_columns, row_at
from .errors import ShardError
from .files import sha256_file
from .header import Header
from .manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest
from .order import Layout
from .rows import Row
from .schema import arrow_schema, schema_difference

Order = Literal["rank", "any"]
"""Of the ids inside a head (most likely first) and a tail (rising); `any`: as stored, faster for compact shards."""
CACHE_BYTES = 64 * 2**20
_RUN_AGAIN = "run the stage that writes it again (only missing shards are written)"
RESTORE_SHARD = f"delete this file and {_RUN_AGAIN}"


class ShardFile:
    """One open shard; `columns(b)` decodes its b-th record batch."""

    def __init__(self, folder: Path, entry: ShardEntry, manifest: Manifest, order: Order = "rank") -> None:
        """Map the file and check that it is, to the last bit, the shard the manifest means.

        Raises:
            ShardError: it is missing, cut, damaged, not an Arrow file, or another shard.
        """
        self._path, self._header, self._order = folder / entry.file, manifest.header, order
        if not self._path.is_file():
            raise ShardError(f"{self._path}: missing; restore it, or {_RUN_AGAIN}")
        size = self._path.stat().st_size
        if size != entry.bytes:
            raise ShardError(f"{self._path}: {size} bytes, {entry.bytes} in the manifest; {RESTORE_SHARD}")
        sha256 = sha256_file(self._path)
        if sha256 != entry.sha256:
            raise ShardError(
                f"{self._path}: sha256 is {sha256[:12]}, {entry.sha256[:12]} in the manifest; {RESTORE_SHARD}"
            )
        try:
            options = pa.ipc.IpcReadOptions(use_threads=False)
            self._reader = pa.ipc.open_file(pa.memory_map(str(self._path)), options=options)
            found = self._reader.schema
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"{self._path}: not readable ({_first_line(error)}); {RESTORE_SHARD}") from None
        difference = schema_difference(found, arrow_schema(manifest.header, entry.plan, manifest.rows_per_batch))
        if difference is not None:
            raise ShardError(f"{self._path}: does not belong here: {difference}; {RESTORE_SHARD}")

    @property
    def num_batches(self) -> int:
        return self._reader.num_record_batches

    def columns(self, index: int) -> Columns:
        """Decode one record batch.

        Raises:
            ShardError: Arrow finds it damaged.
        """
        try:
            batch = self._reader.get_batch(index)
            batch.validate(full=True)
            nulls = [name for name in batch.schema.names if batch.column(name).null_count]
        except (pa.ArrowException, OSError) as error:
            raise ShardError(
                f"{self._path}: batch {index} is damaged ({_first_line(error)}); {RESTORE_SHARD}"
            ) from None
        if nulls:
            raise ShardError(f"{self._path}: batch {index} has nulls in '{nulls[0]}'; {RESTORE_SHARD}")
        try:
            return batch_to_columns(batch, self._header, ranked=self._order == "rank")
        except ShardError as error:
            raise ShardError(f"{self._path}: batch {index} cannot be decoded ({error}); {RESTORE_SHARD}") from None


class Dataset:
    """The rows of one folder, as a sequence. Arrays of the rows are views: copy before writing into them."""

    def __init__(self, folder: Path, manifest: Manifest, cache_bytes: int = CACHE_BYTES, order: Order = "rank") -> None:
        self.folder = folder
        self.order: Order = order
        self.manifest = manifest
        self._cache_bytes = cache_bytes
        self._first_rows = [shard.first_row for shard in manifest.shards]
        self._forget()

    def __reduce__(self) -> tuple[object, ...]:
        return Dataset, (self.folder, self.manifest, self._cache_bytes)

    @property
    def header(self) -> Header:
        return self.manifest.header

    @property
    def layout(self) -> Layout:
        """For `order.block_order`."""
        return Layout(tuple(shard.num_rows for shard in self.manifest.shards), self.manifest.rows_per_batch)

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def num_scored(self) -> int:
        return self.manifest.num_scored

    def __len__(self) -> int:
        return self.header.num_rows

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard, batch, r = self._locate(index % len(self))
        return row_at(self._columns(shard, batch), r, self.header)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows [start, stop) in order."""
        for index in range(start, len(self) if stop is None else min(stop, len(self))):
            yield self[index]

    def read(self, indices: Sequence[int]) -> list[Row]:
        """The rows at `indices`, in that order; each batch is decoded once however the indices jump."""
        in_file_order = sorted(set(map(int, indices)))
        found = {index: self[index] for index in in_file_order}
        return [found[int(index)] for index in indices]

    def shard_of(self, index: int) -> ShardEntry:
        """The manifest's entry of the shard that holds a row."""
        return self.manifest.shards[bisect_right(self._first_rows, index) - 1]

    def _locate(self, index: int) -> tuple[int, int, int]:
        """(shard, batch inside it, row inside that) of a row."""
        shard = bisect_right(self._first_rows, index) - 1
        return shard, *divmod(index - self._first_rows[shard], self.manifest.rows_per_batch)

    def _columns(self, shard: int, batch: int) -> Columns:
        if self._process != os.getpid():
            self._forget()
        key = (shard, batch)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if shard not in self._files:
            self._files[shard] = ShardFile(self.folder, self.manifest.shards[shard], self.manifest, self.order)
        columns = self._files[shard].columns(batch)
        self._cache[key] = columns
        self._cached_bytes += columns.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return columns

    def _forget(self) -> None:
        """Open nothing and cache nothing: the state of a new process."""
        self._process = os.getpid()
        self._files: dict[int, ShardFile] = {}
        self._cache: OrderedDict[tuple[int, int], Columns] = OrderedDict()
        self._cached_bytes = 0


def open_dataset(folder: Path, *, order: Order = "rank") -> Dataset:
    """The finished dataset in `folder`; nothing but the manifest is read yet.

    `order="any"` is for readers that do not care which id of a head or tail comes first, such as training.

    Raises:
        ShardError: no dataset, a damaged or newer manifest, or a dataset that is not complete.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if not manifest.complete:
        sealed = sum(shard.num_rows for shard in manifest.shards)
        raise ShardError(
            f"{folder}: not complete ({sealed} of {manifest.header.num_rows} rows, says {MANIFEST_NAME}); "
            "run the stage that writes it again, it goes on where it stopped"
        )
    return Dataset(folder, manifest, order=order)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
