"""Datasets made of other datasets' rows: a random sample, two disjoint parts, several put together. No value changes.

Outputs appear whole or not at all (`files.appears_whole`). Rows keep their row_id, headers their fingerprints; the
header says in `extra.derived` how a dataset came about. Everything is a pure function of inputs and seed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShardError, UserError
from .files import appears_whole, canonical_json
from .header import CORPUS_ID, DERIVED, Header
from .manifest import Manifest, plan_shards
from .order import epoch_order
from .reader import Dataset, open_dataset
from .rows import Row
from .writer import DatasetWriter

Progress = Callable[[int, int], None]
"""Gets (rows done, rows in all)."""
Indices = NDArray[np.int64]
_FREE = ("num_rows", "max_length", "threads", "extra", "optional_columns", "fingerprints")
"""Header fields that merged datasets need not share as they are; some are compared by other rules."""


def sample(
    source: Path,
    out: Path,
    rows: int,
    seed: int = 0,
    progress: Progress | None = None,
    tokenizer: Path | None = None,
) -> Manifest:
    """`rows` rows of `source`, chosen at random, in their old order.

    `tokenizer`: a folder that goes along as `out/tokenizer`, here and in the functions below.

    Raises:
        UserError: there are fewer, or `out` exists.
    """
    dataset = open_dataset(source)
    if not 1 <= rows <= len(dataset):
        raise UserError(f"rows: {rows} wanted, {source} has {len(dataset)}; give 1 to {len(dataset)}")
    chosen = np.sort(epoch_order(seed, 0, len(dataset))[:rows])
    with appears_whole(out) as folder:
        made = {"by": "sample", "seed": seed, "from_rows": len(dataset)}
        _carry(tokenizer, folder)
        return _write_chosen(dataset, folder, chosen, made, progress)


def split(
    source: Path,
    outs: tuple[Path, Path],
    rows: int,
    seed: int = 0,
    by: str = "document",
    progress: Progress | None = None,
    tokenizer: Path | None = None,
) -> tuple[Manifest, Manifest]:
    """Two disjoint parts that together are `source`; the first gets `rows` rows.

    `by`: `document`: rows that share a document stay together, so the first part gets the nearest number below that
    whole groups of rows allow; `row`: exactly `rows`. Without document_ids every row is its own document.

    Raises:
        UserError: a part would be empty, or an output exists.
    """
    dataset = open_dataset(source)
    if not 0 < rows < len(dataset):
        raise UserError(f"rows: {rows} of {len(dataset)} rows would leave a part empty; give 1 to {len(dataset) - 1}")
    groups = _document_groups(dataset) if by == "document" else np.arange(len(dataset))
    first = _fill(groups, rows, seed)
    if not len(first):
        raise UserError(
            f"{source}: the rows hang together by shared documents, no group of them has {rows} rows or fewer; "
            "give more rows, or split by row"
        )
    second = np.setdiff1d(np.arange(len(dataset)), first)
    if outs[0].resolve() == outs[1].resolve():
        raise UserError(f"{outs[0]}: given for both parts; name two folders")
    made = {"by": "split", "seed": seed, "from_rows": len(dataset), "unit": by}
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(appears_whole(out)) for out in outs]
        for folder in folders:
            _carry(tokenizer, folder)
        parts = [
            _write_chosen(dataset, folder, chosen, made | {"part": part}, progress)
            for part, folder, chosen in zip("ab", folders, (first, second), strict=True)
        ]
    return parts[0], parts[1]


def merge(
    sources: Sequence[Path], out: Path, progress: Progress | None = None, tokenizer: Path | None = None
) -> Manifest:
    """All rows of `sources`, ordered by corpus fingerprint and row_id: the same bytes in whatever order they are given.

    The column `corpus_id` says which entry of the header's `extra.corpora` a row_id belongs to.

    Raises:
        UserError: teachers, tokenizers or settings differ (the field is named), a row comes twice, or `out` exists.
    """
    datasets = [open_dataset(source) for source in sources]
    for dataset in datasets[1:]:
        _refuse_difference(datasets[0], dataset)
    corpora = sorted({corpus for dataset in datasets for corpus in _corpora(dataset.header)})
    places = _merged_order(datasets, corpora)
    header = _merged_header(datasets, corpora, len(places))
    rows_per_batch = min(dataset.manifest.rows_per_batch for dataset in datasets)
    rows_per_shard = max(entry.num_rows for dataset in datasets for entry in dataset.manifest.shards)

    def rows(places: NDArray[np.int64]) -> Iterator[Row]:
        for corpus_id, _, number, index in places.tolist():
            yield replace(_with_dead_mass(datasets[number], index), corpus_id=corpus_id)

    with appears_whole(out) as folder:
        _carry(tokenizer, folder)
        return _write(folder, header, places, rows, (rows_per_shard, rows_per_batch), progress)


def _carry(tokenizer: Path | None, folder: Path) -> None:
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / "tokenizer")


def _write_chosen(
    dataset: Dataset, folder: Path, chosen: Indices, made: dict[str, Any], progress: Progress | None
) -> Manifest:
    extra = dataset.header.extra | {DERIVED: [*dataset.header.extra.get(DERIVED, []), made]}
    header = replace(dataset.header, num_rows=len(chosen), extra=extra)
    sizes = (max(entry.num_rows for entry in dataset.manifest.shards), dataset.manifest.rows_per_batch)

    def rows(indices: Indices) -> Iterator[Row]:
        return (_with_dead_mass(dataset, index) for index in indices.tolist())

    return _write(folder, header, chosen, rows, sizes, progress)


def _write(
    folder: Path,
    header: Header,
    places: NDArray[np.int64],
    rows: Callable[[NDArray[np.int64]], Iterator[Row]],
    sizes: tuple[int, int],
    progress: Progress | None,
) -> Manifest:
    """Write `rows(places[...])`, shard by shard; `sizes`: rows of a shard and of a batch."""
    writer = DatasetWriter(folder, header, plan_shards(len(places), sizes[0]), sizes[1])
    for plan in writer.missing():
        stop = plan.first_row + plan.num_rows
        writer.write(plan, rows(places[plan.first_row : stop]))
        if progress is not None:
            progress(stop, len(places))
    return writer.close()


def _with_dead_mass(dataset: Dataset, index: int) -> Row:
    """The row, its capture with the mean of its shard: the only place where that mass is stored."""
    row = dataset[index]
    if row.capture is None:
        return row
    mass = dataset.shard_of(index).dead_row_mass
    return replace(row, capture=replace(row.capture, dead_row_mass=mass))


def _document_groups(dataset: Dataset) -> Indices:
    """[rows] a number for each row, equal for rows that are linked by shared documents (the smallest row of them)."""
    parent = np.arange(len(dataset))

    def root(r: int) -> int:
        while parent[r] != r:
            parent[r] = parent[parent[r]]
            r = parent[r]
        return int(r)

    seen: dict[tuple[int, int], int] = {}
    for r, row in enumerate(dataset.rows()):
        for document in () if row.document_ids is None else row.document_ids.tolist():
            first = root(seen.setdefault((row.corpus_id, document), r))
            mine = root(r)
            parent[max(first, mine)] = min(first, mine)
    return np.array([root(r) for r in range(len(dataset))], np.int64)


def _fill(groups: Indices, rows: int, seed: int) -> Indices:
    """Rows of whole groups, drawn in random order, that fit into `rows`; sorted."""
    names, sizes = np.unique(groups, return_counts=True)
    room, taken = rows, []
    for g in epoch_order(seed, 0, len(names)).tolist():
        if sizes[g] <= room:
            taken.append(names[g])
            room -= int(sizes[g])
    return np.flatnonzero(np.isin(groups, taken))


def _refuse_difference(ours: Dataset, theirs: Dataset) -> None:
    left, right = ours.header.to_json(), theirs.header.to_json()
    compared = {name: (left[name], right[name]) for name in left if name not in _FREE}
    prints = left["fingerprints"], right["fingerprints"]
    compared |= {name: (prints[0].get(name), prints[1].get(name)) for name in {*prints[0], *prints[1]} - {"corpus"}}
    columns = [sorted({*header["optional_columns"]} - {CORPUS_ID}) for header in (left, right)]
    compared["optional_columns"] = columns[0], columns[1]
    for name in sorted(compared):
        if compared[name][0] != compared[name][1]:
            remedy = "convert one of them first" if name == "encoding" else "only dumps made alike can be merged"
            a, b = compared[name]
            raise ShardError(f"{theirs.folder}: {name} is {b!r}, {a!r} in {ours.folder}; {remedy}")


def _corpora(header: Header) -> list[str]:
    """Fingerprints of the corpora that the row_ids belong to, by corpus_id, each as text."""
    if CORPUS_ID in header.optional_columns:
        return [str(corpus) for corpus in header.extra["corpora"]]
    corpus = header.fingerprints.get("corpus", "")
    return [corpus if isinstance(corpus, str) else canonical_json(corpus)]


def _merged_order(datasets: Sequence[Dataset], corpora: list[str]) -> NDArray[np.int64]:
    """[rows, 4] of (corpus_id, row_id, dataset, index there), in the order of the merged dataset."""
    parts = []
    for number, dataset in enumerate(datasets):
        new_id = [corpora.index(corpus) for corpus in _corpora(dataset.header)]
        if dataset.header.derived:
            ids = [(new_id[row.corpus_id], row.row_id) for row in dataset.rows()]
        else:
            ids = [(new_id[0], r) for r in range(len(dataset))]
        part = np.zeros((len(ids), 4), np.int64)
        part[:, :2] = np.array(ids, np.int64).reshape(-1, 2)
        part[:, 2], part[:, 3] = number, np.arange(len(ids))
        parts.append(part)
    places = np.concatenate(parts)
    places = places[np.lexsort((places[:, 1], places[:, 0]))]
    twice = np.flatnonzero((places[1:, :2] == places[:-1, :2]).all(axis=1))
    if len(twice):
        at, again = places[twice[0]], places[twice[0] + 1]
        raise ShardError(
            f"{datasets[again[2]].folder}: row {at[1]} of the corpus {corpora[at[0]][:12]} is in "
            f"{datasets[at[2]].folder} as well; merge datasets that share no row"
        )
    return places


def _merged_header(datasets: Sequence[Dataset], corpora: list[str], num_rows: int) -> Header:
    headers = [dataset.header for dataset in datasets]
    first = headers[0]
    threads = {header.threads for header in headers}
    splits = {header.extra.get("split") for header in headers}
    kept = {"split": first.extra["split"]} if len(splits) == 1 and "split" in first.extra else {}
    coded = {name: value for header in headers for name, value in header.extra.items() if name == "decoded_from"}
    return replace(
        first,
        num_rows=num_rows,
        max_length=max(header.max_length for header in headers),
        threads=threads.pop() if len(threads) == 1 else None,
        optional_columns=(*(name for name in first.optional_columns if name != CORPUS_ID), CORPUS_ID),
        fingerprints=first.fingerprints | {"corpus": _fingerprint(corpora)},
        extra=kept | coded | {"corpora": corpora, DERIVED: [{"by": "merge"}]},
    )


def _fingerprint(corpora: list[str]) -> str | dict[str, str]:
    return corpora[0] if len(corpora) == 1 else {str(corpus_id): corpus for corpus_id, corpus in enumerate(corpora)}
