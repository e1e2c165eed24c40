"""Second pass: the chosen records become pieces on disk, addressable in packing order. Not part of the output.

Memory: about 60 bytes a piece; tokens and labels lie in two flat files that are read through the page cache.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .pieces import Piece


class Spool:
    """Append pieces, then `finish`, then read them by index."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._paths = folder / "tokens.i32", folder / "labels.u8"
        self._files = tuple(path.open("wb") for path in self._paths)
        self._starts, self._runs_starts = array("q", [0]), array("q", [0])
        self._runs = array("i")
        self._places, self._documents = array("q"), array("q")
        self._continued, self._sources = array("b"), array("i")
        self._source_ids: dict[str, int] = {}

    def append(self, piece: Piece, *, place: int, document: int, source: str) -> None:
        """`place`: the sample's position in packing order; `document`: its ordinal in the corpus."""
        self._files[0].write(piece.tokens.tobytes())
        self._files[1].write(piece.labels.tobytes())
        self._starts.append(self._starts[-1] + len(piece.tokens))
        self._runs.frombytes(piece.runs.tobytes())
        self._runs_starts.append(len(self._runs))
        self._places.append(place)
        self._documents.append(document)
        self._continued.append(piece.continued)
        self._sources.append(self._source_ids.setdefault(source, len(self._source_ids)))

    def close(self) -> None:
        """Close the files under way; harmless when done before."""
        for f in self._files:
            f.close()

    def finish(self) -> SpooledPieces:
        """No more pieces: open what was written."""
        self.close()
        names = tuple(self._source_ids)
        return SpooledPieces(
            tokens=_mapped(self._paths[0], np.int32),
            labels=_mapped(self._paths[1], np.bool_),
            starts=np.array(self._starts),
            runs=np.array(self._runs, dtype=np.int32),
            runs_starts=np.array(self._runs_starts),
            places=np.array(self._places, dtype=np.int64),
            documents=np.array(self._documents, dtype=np.int64),
            continued=np.array(self._continued, dtype=np.bool_),
            sources=np.array(self._sources, dtype=np.int64),
            source_names=names,
        )


@dataclass(frozen=True, eq=False)
class SpooledPieces:
    """P pieces of all splits, in corpus order; tokens and labels are memory-mapped."""

    tokens: NDArray[np.int32]  # of all pieces, one after the other
    labels: NDArray[np.bool_]
    starts: NDArray[np.int64]  # [P + 1] offsets into tokens and labels
    runs: NDArray[np.int32]  # flat
    runs_starts: NDArray[np.int64]  # [P + 1] offsets into runs
    places: NDArray[np.int64]  # [P] position of the sample in packing order
    documents: NDArray[np.int64]  # [P] ordinal of the record in the corpus
    continued: NDArray[np.bool_]  # [P]
    sources: NDArray[np.int64]  # [P] index into source_names
    source_names: tuple[str, ...]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[P] tokens of each piece."""
        return np.diff(self.starts)

    def __getitem__(self, index: int) -> Piece:
        a, b = self.starts[index], self.starts[index + 1]
        c, d = self.runs_starts[index], self.runs_starts[index + 1]
        return Piece(self.tokens[a:b], self.labels[a:b], self.runs[c:d].reshape(-1, 2), bool(self.continued[index]))

    def between(self, first: int, stop: int) -> NDArray[np.int64]:
        """Indices of the pieces whose sample's place is in [first, stop), in packing order."""
        inside = np.flatnonzero((self.places >= first) & (self.places < stop))
        return inside[np.argsort(self.places[inside], kind="stable")]

    def count_sources(self, indices: NDArray[np.int64]) -> dict[str, int]:
        """Source -> samples among these pieces."""
        _, first = np.unique(self.places[indices], return_index=True)
        counts = Counter(self.sources[indices][first].tolist())
        return {self.source_names[i]: counts[i] for i in sorted(counts)}


def _mapped(path: Path, kind: type[np.generic]) -> NDArray:
    """A flat file as an array; an empty file cannot be mapped."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)
