"""metrics.jsonl: one line a logged step, cut back on resume so that no step is logged twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines; floats are written so that they read back bitwise equal."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        """Open `path`, forgetting everything after `keep_bytes` (what the resumed checkpoint had seen)."""
        self._file = path.open("ab")
        if self._file.tell() > keep_bytes:
            self._file.truncate(keep_bytes)
        self._file.seek(0, os.SEEK_END)

    def write(self, line: dict[str, Any]) -> None:
        """Append one object and hand it to the operating system."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Make the file durable; its length in bytes, for the checkpoint."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
