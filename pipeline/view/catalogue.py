"""What search and the lists of worst tokens need to know of every row: read once in the background, kept on disk.

A row takes its signature and 24 bytes, in files that are mapped, not loaded; so memory does not grow with the
dataset. The files lie in the user cache under the dataset's own digest, and appear there whole or not at all. While
they are being made, the rows read so far can be asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import Dataset, Row
from shards.errors import UserError
from shards.files import cache_root, digest, write_json

from .signature import signature, signature_bytes
from .text import TokenText
from .worst import Worst

MEASURES = ("entropy", "rest", "label")
_ROW = np.dtype([("row_id", "<u8"), ("source", "<u4"), ("tokens", "<u4"), ("scored", "<u4"), ("entropy", "<f4")])
_AT_A_TIME = 64
_VERSION = 1


class Catalogue:
    """Of one dataset; `start()` begins (or loads) it, `ready` rows can be asked for."""

    def __init__(self, dataset: Dataset, text: TokenText, place: Path | None = None) -> None:
        """`place`: folder of the finished files; default: in the user cache, by the dataset's digest."""
        self._dataset = Dataset(dataset.folder, dataset.manifest)  # a cache of its own: read by another thread
        self._text = text
        self._place = place or _place_of(dataset)
        self._begin = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self.num_rows = len(dataset)
        self.ready = 0
        self.error: str | None = None
        self.sources: list[str] = []
        self.worst = {name: Worst() for name in MEASURES}
        self.rows = np.zeros(0, _ROW)
        self.signatures = np.zeros((0, 1), np.uint8)

    def start(self) -> None:
        """Load the finished files, or begin to make them; returns at once."""
        with self._begin:
            if self._thread is not None or self.ready == self.num_rows > 0:
                return
            if not self._load():
                self._thread = threading.Thread(target=self._work, name="catalogue", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until all rows are in (tests and measurements)."""
        self.start()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _load(self) -> bool:
        facts = self._place / "facts.json"
        if not facts.is_file():
            return False
        content = json.loads(facts.read_text(encoding="utf-8"))
        self.rows = np.load(self._place / "rows.npy", mmap_mode="r")
        self.signatures = np.load(self._place / "signatures.npy", mmap_mode="r")
        self.sources = content["sources"]
        self.worst = {name: Worst.from_json(content["worst"][name]) for name in MEASURES}
        self.ready = self.num_rows
        return True

    def _work(self) -> None:
        folder = self._place.with_name(f".{self._place.name}.{os.getpid()}.tmp")
        try:
            self._make(folder)
        except (UserError, OSError) as e:
            self.error = str(e)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shape = (self.num_rows, signature_bytes(self._dataset.header.max_length))
        self.signatures = np.lib.format.open_memmap(folder / "signatures.npy", "w+", np.uint8, shape)
        self.rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", _ROW, (self.num_rows,))
        codes: dict[str, int] = {}
        for start in range(0, self.num_rows, _AT_A_TIME):
            if self._closed.is_set():
                return
            rows = list(self._dataset.rows(start, start + _AT_A_TIME))
            texts = self._text.whole([row.input_ids.tolist() for row in rows])
            for index, (row, text) in enumerate(zip(rows, texts, strict=True), start):
                if row.source not in codes:
                    codes[row.source] = len(codes)
                    self.sources = list(codes)
                self.signatures[index] = signature(text, shape[1])
                self.rows[index] = (row.row_id, codes[row.source], row.num_tokens, row.num_scored, _mean_entropy(row))
                self._offer(index, row)
            self.ready = start + len(rows)
        worst = {name: w.to_json() for name, w in self.worst.items()}
        write_json(folder / "facts.json", {"sources": self.sources, "worst": worst})
        if not self._place.exists():
            folder.rename(self._place)  # the maps go on: they hold the files, not their names

    def _offer(self, index: int, row: Row) -> None:
        if row.capture is not None and row.num_scored:
            for name in MEASURES:
                self.worst[name].add(index, row.scored_positions(), measured(row, name))


def _mean_entropy(row: Row) -> float:
    return float(row.capture.entropy.mean()) if row.capture is not None and row.num_scored else float("nan")


def measured(row: Row, name: str) -> NDArray[np.float32]:
    """[n] one of `MEASURES` at the scored positions of a row with captures; large is bad."""
    assert row.capture is not None
    match name:
        case "entropy":
            return row.capture.entropy
        case "rest":
            return row.capture.rest_mass[:, 0]
        case "label":
            return -row.capture.label_logprob
    raise AssertionError(name)


def _place_of(dataset: Dataset) -> Path:
    return cache_root() / "view" / f"{digest([dataset.manifest.to_text(), _VERSION])[:24]}"
