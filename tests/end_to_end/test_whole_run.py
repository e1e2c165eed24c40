"""Every stage in a row on a tiny teacher: what it leaves, and what a second start does (nothing)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import Project

from shards import DatasetWriter, open_dataset, plan_shards


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_dump_is_aligned_and_one_with_labels_shifted_by_one_is_not(tmp_path: Path, smollm2_folder: Path) -> None:
    project = Project.create(tmp_path, {"kind": "packaged", "name": "smollm2-135m-instruct"})
    dumped = project.call("dump", "tiny.yaml", "prepare.max_tokens=5000", timeout=600)
    assert dumped.code == 0, dumped.output
    verified = project.call("shards", "verify", str(project.shards / "train"))
    assert verified.code == 0, verified.output
    assert "off-by-one: ok" in verified.output

    dataset = open_dataset(project.shards / "train")
    shifted = project.folder / "shifted"
    writer = DatasetWriter(shifted, dataset.header, plan_shards(len(dataset), len(dataset)))
    writer.write(writer.plan[0], [replace(row, input_ids=np.roll(row.input_ids, 1)) for row in dataset.rows()])
    writer.close()
    refused = project.call("shards", "verify", str(shifted))
    assert refused.code == 2, refused.output
    assert "off-by-one: failed" in refused.output
