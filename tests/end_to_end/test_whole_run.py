"""Every stage in a row on a tiny teacher: what it leaves, and what a second start does (nothing)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Project

STAGES = ("prepare", "dump", "train", "eval", "export", "report")


def stage_times(project: Project) -> dict[str, int]:
    """Modification time of every stage marker."""
    return {str(p.relative_to(project.folder)): p.stat().st_mtime_ns for p in project.folder.rglob("stage.json")}


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_run_goes_through_every_stage_and_then_recomputes_only_what_changed(project: Project) -> None:
    first = project.call("run", "tiny.yaml")
    assert first.code == 0, first.output
    run = project.folder / "runs" / "tiny"
    evaluation = json.loads((run / "eval" / "eval.json").read_text())
    assert evaluation["student"]["cross_entropy"] > 0
    page = (run / "report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (run / "export" / "model.safetensors").exists()

    before = stage_times(project)
    again = project.call("run", "tiny.yaml")
    assert again.code == 0, again.output
    assert stage_times(project) == before

    changed = project.call("run", "tiny.yaml", "train.optimizer.learning_rate=1e-3")
    assert changed.code == 0, changed.output
    now = stage_times(project)
    for path, time in before.items():
        if path.startswith("dumps"):
            assert now[path] == time, f"{path} was written again"
        else:
            assert now[path] != time, f"{path} was not written again"

    back = project.call("run", "tiny.yaml")
    assert back.code == 0, back.output
    assert stage_times(project)["runs/tiny/train/stage.json"] == before["runs/tiny/train/stage.json"], (
        "the set-aside training of the first settings should have come back"
    )


def test_the_dump_verifies_and_a_shift_of_labels_does_not(project: Project, tmp_path: Path) -> None:
    dumped = project.call("dump", "tiny.yaml")
    assert dumped.code == 0, dumped.output
    verified = project.call("shards", "verify", str(project.shards / "train"))
    assert verified.code == 0, verified.output
