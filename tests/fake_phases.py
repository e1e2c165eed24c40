"""Stands in for the phases in tests of the conductor."""

from __future__ import annotations

from pathlib import Path

FAKE_PHASE = """
# What a phase does without the work, and without imports that cost time: claim, emit, write, mark done.
import json, sys
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder, stage = Path(job["output"]), job["stage"]
folder.mkdir(parents=True, exist_ok=True)
print("free text of a library")
print(json.dumps({"event": "progress", "stage": stage, "done": 1, "total": 2, "unit": "rows", "text": ""}))
with (folder.parent / "starts.txt").open("a") as f:
    f.write(stage + "\\n")
marker = {"stage": stage, "digest": job["digest"], "done": True, "summary": {}}
(folder / "stage.json").write_text(json.dumps(marker))
"""


class FakePhases:
    """Where the fake writes, and which stages it was started for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def started(self) -> list[str]:
        """Stages started since the last call, in order."""
        found = []
        for path in sorted(self.root.rglob("starts.txt")):
            found += path.read_text().split()
            path.unlink()
        return found
