"""Write a dataset again in another encoding: same rows, shards, batches and fingerprints. The bytes are `writer`'s.

plain -> compact is lossy within the bounds of `compact.DECODING`; compact -> plain -> compact gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .errors import ShardError
from .files import folder_lock
from .header import Encoding
from .manifest import MANIFEST_NAME, Manifest, load_manifest
from .reader import open_dataset
from .verify import verify
from .writer import DatasetWriter


def convert(
    source: Path, out: Path, encoding: Encoding, after_shard: Callable[[int, int], None] | None = None
) -> Manifest:
    """Write the dataset `source` into the folder `out`; whole shards that a killed conversion left there are kept.

    The source is verified first: what is wrong in it would be hidden or spread. `after_shard` gets (done, total).

    Raises:
        ShardError: the source is broken, has that encoding already, or holds no captures; `out` is not empty and not
            the beginning of this very conversion.
    """
    dataset = open_dataset(source)
    if dataset.header.kind != "captures":
        raise ShardError(f"{source}: holds prepared rows without captures; only captures are converted")
    if dataset.header.encoding == encoding:
        raise ShardError(f"{source}: is {encoding} already; copy the folder, or choose the other encoding")
    _refuse_strangers(out)
    problems = verify(source).problems
    if problems:
        raise ShardError(f"{source}: not converted, verify finds {len(problems)} problem(s), the first: {problems[0]}")
    manifest = dataset.manifest
    with folder_lock(out):
        header = dataset.header.with_encoding(encoding)
        plan = tuple(entry.plan for entry in manifest.shards)
        writer = DatasetWriter(out, header, plan, manifest.rows_per_batch)
        missing = {shard.file for shard in writer.missing()}
        for number, entry in enumerate(manifest.shards, 1):
            if entry.file in missing:
                rows = dataset.rows(entry.first_row, entry.first_row + entry.num_rows)
                writer.write(entry.plan, rows, dead_row_mass=entry.dead_row_mass)
            if after_shard is not None:
                after_shard(number, len(plan))
        return writer.close()


def _refuse_strangers(out: Path) -> None:
    if (out / MANIFEST_NAME).exists():
        if load_manifest(out).complete:
            raise ShardError(f"{out}: holds a finished dataset, which is never overwritten; choose another folder")
    elif out.is_file() or (out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())):
        raise ShardError(f"{out}: is not empty; choose a new folder")
