"""What the page asks for, as JSON values: datasets, rows, positions, the worst tokens. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from shards import Dataset, Row, open_dataset
from shards.errors import UserError

from .catalogue import MEASURES, Catalogue, measured
from .signature import candidates
from .student import StudentProcess
from .text import TokenText, text_beside

_SEARCH_S = 1.0
_SNIPPET_TOKENS = 48
_CONTEXT_TOKENS = 12


class NotThereError(LookupError):
    """No such dataset, row or position."""


class Shelf:
    """One dataset with its text and its catalogue; safe to ask from several threads."""

    def __init__(self, folder: Path) -> None:
        self.dataset: Dataset = open_dataset(folder)
        self.text: TokenText = text_beside(folder)
        self.catalogue = Catalogue(self.dataset, self.text)
        self._lock = threading.Lock()

    def row(self, index: int) -> Row:
        if not 0 <= index < len(self.dataset):
            raise NotThereError(f"row {index}: this dataset has rows 0 to {len(self.dataset) - 1}")
        with self._lock:
            return self.dataset[index]


class Library:
    """The shelves by name, and the student, if there is one."""

    def __init__(self, folders: list[Path], student: Path | None = None) -> None:
        """Raises UserError where a folder holds no dataset, or the student does not fit."""
        self.shelves = {folder.resolve().name: Shelf(folder) for folder in folders}
        scored = {n: s.dataset for n, s in self.shelves.items() if s.dataset.header.kind == "captures"}
        if student is not None and not scored:
            raise UserError(f"--student {student}: these rows have no captures to compare it with; give dumped shards")
        self.student = StudentProcess(student, scored) if student is not None else None

    def close(self) -> None:
        if self.student is not None:
            self.student.close()
        for shelf in self.shelves.values():
            shelf.catalogue.close()

    def about(self) -> dict[str, Any]:
        datasets = [
            {
                "name": name,
                "folder": str(shelf.dataset.folder),
                "rows": len(shelf.dataset),
                "tokens": shelf.dataset.num_tokens,
                "scored": shelf.dataset.num_scored,
                "captures": shelf.dataset.header.kind == "captures",
                "text": shelf.text.known,
                "vocabulary": shelf.dataset.header.vocab_size,
                "temperatures": list(shelf.dataset.header.temperatures),
            }
            for name, shelf in self.shelves.items()
        ]
        return {"datasets": datasets, "student": str(self.student.model) if self.student else None}

    def rows(self, data: str, start: int, count: int, query: str, source: str) -> dict[str, Any]:
        """Up to `count` rows from `start` on that hold `query` (any case) and come from `source`; '' is any.

        A search reads for about a second, then says where to go on (`next`; None: at the end).
        """
        shelf = self._shelf(data)
        end = len(shelf.dataset)
        if query or source:
            shelf.catalogue.start()
            end = shelf.catalogue.ready
            may = _may_match(shelf, start, end, query, source)
        else:
            may = np.arange(start, min(end, start + count))
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + _SEARCH_S
        following: int | None = None
        for index in may.tolist():
            if len(found) == count or time.monotonic() > deadline:
                following = index
                break
            row = shelf.row(index)
            if not query or query.lower() in shelf.text.whole([row.input_ids.tolist()])[0].lower():
                found.append(_summary(shelf, index, row))
        if following is None and end < len(shelf.dataset):
            following = max(start, end)  # not indexed yet
        if not query and not source and len(may) and may[-1] + 1 < len(shelf.dataset):
            following = int(may[-1]) + 1
        return {"rows": found, "next": following, **self._progress(shelf)}

    def row(self, data: str, index: int) -> dict[str, Any]:
        shelf = self._shelf(data)
        row = shelf.row(index)
        said: dict[str, Any] = {
            "row": index,
            "row_id": row.row_id,
            "source": row.source,
            "pieces": shelf.text.pieces(row.input_ids.tolist()),
            "segments": row.segment_starts.tolist(),
            "prompt_runs": row.prompt_runs.tolist(),
            "positions": row.scored_positions().tolist(),
        }
        if row.capture is not None:
            said |= {name: np.round(measured(row, name).astype(float), 5).tolist() for name in MEASURES}
            said["rank"] = row.capture.label_rank.tolist()
        return said

    def scores(self, data: str, index: int) -> dict[str, Any]:
        """The student's KL, label log-probability and entropy at the row's scored positions."""
        self._shelf(data).row(index)
        said = self._student().row(data, index)
        return {name: said[name] for name in ("row", "kl", "label_logprob", "entropy")}

    def position(self, data: str, index: int, position: int, *, with_student: bool) -> dict[str, Any]:
        """Head and tail at one scored position, and the student's side of it."""
        shelf = self._shelf(data)
        row = shelf.row(index)
        at = np.flatnonzero(row.scored_positions() == position)
        if row.capture is None or not len(at):
            raise NotThereError(f"row {index}, position {position}: not scored")
        n, c = int(at[0]), row.capture
        heads, tails = (int(x[:n].sum(dtype=np.int64)) for x in (c.head_lengths, c.tail_lengths))
        head = slice(heads, heads + int(c.head_lengths[n]))
        tail = slice(tails, tails + int(c.tail_lengths[n]))
        label = int(row.input_ids[position + 1])
        said: dict[str, Any] = {
            "row": index,
            "position": position,
            "label": {"id": label, "text": shelf.text.one(label)},
            "p_label": float(np.exp(c.label_logprob[n])),
            "rank": int(c.label_rank[n]),
            "entropy": float(c.entropy[n]),
            "rest": c.rest_mass[n].tolist(),
            "head": [
                {"id": i, "text": shelf.text.one(i), "p": float(np.exp(p))}
                for i, p in zip(c.head_ids[head].tolist(), c.head_logprobs[head].tolist(), strict=True)
            ],
            "tail": [
                {"id": i, "text": shelf.text.one(i), "count": k}
                for i, k in zip(c.tail_ids[tail].tolist(), c.tail_counts[tail].tolist(), strict=True)
            ],
        }
        if with_student:
            _add_student(said, self._student().row(data, index), n, shelf.text)
        return said

    def worst(self, data: str, by: str, count: int) -> dict[str, Any]:
        """The tokens with the largest values of a measure among the rows read so far."""
        shelf = self._shelf(data)
        if by == "kl":
            self._student().sweep(data)
            places = self._student().worst[data].first(count)
            progress = {"ready": self._student().swept[data], "of": len(shelf.dataset), "error": None}
        elif by in MEASURES:
            shelf.catalogue.start()
            places, progress = shelf.catalogue.worst[by].first(count), self._progress(shelf)
        else:
            raise NotThereError(f"measure {by}: choose one of {', '.join((*MEASURES, 'kl'))}")
        tokens = []
        for index, position, value in places:
            ids = shelf.row(index).input_ids
            before = ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1].tolist()
            token = shelf.text.one(int(ids[position + 1]))
            context = shelf.text.whole([before])[0]
            tokens.append({"row": index, "position": position, "value": value, "token": token, "context": context})
        return {"tokens": tokens, **progress}

    def _progress(self, shelf: Shelf) -> dict[str, Any]:
        c = shelf.catalogue
        return {"ready": c.ready, "of": c.num_rows, "error": c.error, "sources": sorted(c.sources)}

    def _shelf(self, data: str) -> Shelf:
        if data not in self.shelves:
            raise NotThereError(f"dataset {data}: there are {', '.join(self.shelves)}")
        return self.shelves[data]

    def _student(self) -> StudentProcess:
        if self.student is None:
            raise NotThereError("no student: start the viewer with --student DIR")
        return self.student


def _may_match(shelf: Shelf, start: int, end: int, query: str, source: str) -> np.ndarray:
    c = shelf.catalogue
    may = candidates(c.signatures[start:end], query) if query and end > start else np.ones(max(0, end - start), bool)
    if source:
        code = c.sources.index(source) if source in c.sources else -1
        may &= c.rows["source"][start:end] == code
    return np.flatnonzero(may) + start


def _summary(shelf: Shelf, index: int, row: Row) -> dict[str, Any]:
    entropy = float(row.capture.entropy.mean()) if row.capture is not None and row.num_scored else None
    text = shelf.text.whole([row.input_ids[:_SNIPPET_TOKENS].tolist()])[0]
    return {
        "row": index,
        "source": row.source,
        "tokens": row.num_tokens,
        "scored": row.num_scored,
        "text": text,
        "entropy": entropy,
    }


def _add_student(said: dict[str, Any], scores: dict[str, Any], n: int, text: TokenText) -> None:
    """The student's probabilities beside the teacher's, and its own favourites."""
    support = np.exp(scores["support_logprobs"][n]).tolist()
    for entry, p in zip([*said["head"], *said["tail"]], support, strict=True):
        entry["student"] = p
    said["student"] = {
        "kl": scores["kl"][n],
        "entropy": scores["entropy"][n],
        "p_label": float(np.exp(scores["label_logprob"][n])),
        "rest": max(0.0, 1.0 - sum(support[: len(said["head"])])),
        "top": [
            {"id": i, "text": text.one(i), "p": float(np.exp(p))}
            for i, p in zip(scores["top_ids"][n], scores["top_logprobs"][n], strict=True)
        ],
    }
