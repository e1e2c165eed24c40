"""The student behind the page: a process of phase two that answers questions about rows, one at a time.

It is asked for the row on the screen, and, while somebody looks at the list of the worst, for all rows in a fixed
shuffled order, so that any beginning of them is a fair sample.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from shards import Dataset, epoch_order
from shards.errors import UserError
from shards.files import read_json, write_json
from student_train.config import ScoreJob

from ..process import parse_event, tail
from ..run import generate_command, phase_environment
from .worst import Worst

_KEPT_ROWS = 64
_AT_A_TIME = 8
_PATIENCE_S = 15.0


class StudentProcess:
    """Start it in the main thread: the kernel ends it with the thread that started it."""

    def __init__(self, model: Path, datasets: dict[str, Dataset]) -> None:
        """Refuse a student for another vocabulary at once; what else is wrong shows in the answers."""
        self.model = model
        self._datasets = datasets
        config = read_json(model / "config.json")
        for dataset in datasets.values():
            if config.get("vocab_size") != dataset.header.vocab_size:
                raise UserError(
                    f"{model}: made for {config.get('vocab_size')} tokens, {dataset.folder} has "
                    f"{dataset.header.vocab_size}; give the student that was trained on these shards"
                )
        self._scratch = tempfile.TemporaryDirectory(prefix="minicodformer-view-")
        self._log = Path(self._scratch.name) / "student.log"
        job = ScoreJob(model=model.absolute(), datasets={n: d.folder.absolute() for n, d in datasets.items()})
        job_file = Path(self._scratch.name) / "score.json"
        write_json(job_file, job.model_dump(mode="json"))
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                generate_command(job_file),
                env=phase_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._waiting: set[object] = set()  # whoever waits for a row goes before the sweep
        self._kept: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
        self._wanted_until: dict[str, float] = {}
        self.swept: dict[str, int] = dict.fromkeys(datasets, 0)
        self.worst = {name: Worst() for name in datasets}
        self._sweepers: dict[str, threading.Thread] = {}
        self._closed = threading.Event()

    def row(self, name: str, index: int) -> dict[str, Any]:
        """What the student says about one row, in detail (see `student_train.answer`).

        Raises:
            UserError: it cannot, or its process has ended.
        """
        key = (name, index)
        me = object()
        self._waiting.add(me)
        try:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = self._ask({"data": name, "rows": [index], "detail": True})[0]
                    while len(self._kept) > _KEPT_ROWS:
                        self._kept.popitem(last=False)
                self._kept.move_to_end(key)
                return self._kept[key]
        finally:
            self._waiting.discard(me)

    def sweep(self, name: str) -> None:
        """Go on looking for the worst tokens of a dataset for a while; returns at once."""
        self._wanted_until[name] = time.monotonic() + _PATIENCE_S
        if name not in self._sweepers:
            self._sweepers[name] = threading.Thread(target=self._work, args=(name,), daemon=True)
            self._sweepers[name].start()

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        self._child.kill()
        self._child.wait()
        for sweeper in self._sweepers.values():
            sweeper.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        self._scratch.cleanup()

    def _work(self, name: str) -> None:
        dataset = Dataset(self._datasets[name].folder, self._datasets[name].manifest)
        blocks = epoch_order(0, 0, -(-len(dataset) // _AT_A_TIME)) * _AT_A_TIME
        for start in blocks.tolist():
            while (self._waiting or time.monotonic() > self._wanted_until[name]) and not self._closed.is_set():
                time.sleep(0.02)
            rows = list(range(start, min(start + _AT_A_TIME, len(dataset))))
            try:
                with self._lock:
                    said = self._ask({"data": name, "rows": rows, "detail": False})
            except UserError:
                return  # whoever asks for a row is told
            for index, answer in zip(rows, said, strict=True):
                values = np.asarray(answer["kl"], np.float32)
                self.worst[name].add(index, dataset[index].scored_positions(), values)
            self.swept[name] += len(rows)

    def _ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """One question, its answer's rows. Whoever calls holds the lock."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # what it said before it ended is still to be read
        for line in self._child.stdout:
            event = parse_event(line) or {}
            match event.get("event"):
                case "scores":
                    return list(event["rows"])
                case "refused" | "error":
                    raise UserError(str(event["text"]))
        last = tail(self._log, 1) if not self._closed.is_set() else ""
        raise UserError(f"the student's process has ended{': ' + last if last else ''}; start the viewer again")
