"""Stands in for the phases in tests of the conductor."""

from __future__ import annotations

from pathlib import Path

from shards import DatasetWriter, Header

FAKE_PHASE = """
# What a phase does without the work, and without imports that cost time: claim, emit, write, mark done.
import json, shutil, sys
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder, stage = Path(job["output"]), job["stage"]
folder.mkdir(parents=True, exist_ok=True)
print("free text of a library")
print(json.dumps({"event": "progress", "stage": stage, "done": 1, "total": 2, "unit": "rows", "text": ""}))
with (folder.parent / "starts.txt").open("a") as f:
    f.write(stage + "\\n")
if stage in ("prepare", "dump"):
    for split in ("train", "val"):
        shutil.copytree(Path(__file__).with_name("empty_dataset"), folder / split, dirs_exist_ok=True)
marker = {"stage": stage, "digest": job["digest"], "done": True, "summary": {}}
(folder / "stage.json").write_text(json.dumps(marker))
"""


class FakePhases:
    """Where the fake writes, and which stages it was started for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        empty = Header(kind="rows", num_rows=0, vocab_size=1, vocab_rows=1, max_length=8)
        DatasetWriter(root / "empty_dataset", empty, ()).close()

    def started(self) -> list[str]:
        """Stages started since the last call, in order."""
        found = []
        for path in sorted(self.root.rglob("starts.txt")):
            found += path.read_text().split()
            path.unlink()
        return found
