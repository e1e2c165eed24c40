"""Digests: what a changed setting or input makes stale, and what it leaves alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.config import RunConfig
from pipeline.stages import num_gpus, plan_run
from shards.errors import UserError
from student_train.config import EvalJob, TrainJob
from teacher_dump.config import DumpJob

MakeConfig = Callable[..., RunConfig]


def stale(before: RunConfig, after: RunConfig) -> list[str]:
    """Labels of the stages whose digest differs."""
    pairs = zip(plan_run(before).stages, plan_run(after).stages, strict=True)
    return [a.label for a, b in pairs if a.digest != b.digest]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.optimizer.learning_rate=1e-3", ["train", "eval", "export", "report"]),
        ("dump.head_size=4", ["dump", "train", "eval", "export", "report"]),
        ("prepare.max_length=64", ["prepare", "dump", "train", "eval", "export", "report"]),
        ("eval.samples=1", ["eval", "export", "report"]),
        ("export.dtype=bfloat16", ["export"]),
        ("teacher.dtype=bfloat16", ["prepare", "dump", "train", "eval", "export", "report"]),
        ("teacher.python=/usr/bin/python3", []),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(
    make_config: MakeConfig, override: str, expected: list[str]
) -> None:
    teacher = {"kind": "packaged"}
    assert stale(make_config(teacher=teacher), make_config(override, teacher=teacher)) == expected


def test_changed_text_makes_everything_stale_and_a_touched_file_nothing(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    before = [stage.digest for stage in plan_run(config).stages]
    os.utime(tmp_path / "corpus.txt", (1, 1))
    assert [stage.digest for stage in plan_run(config).stages] == before
    (tmp_path / "corpus.txt").write_text("other")
    after = [stage.digest for stage in plan_run(config).stages]
    assert not set(before) & set(after)


def test_another_place_changes_no_digest(make_config: MakeConfig, tmp_path: Path) -> None:
    assert stale(make_config(), make_config(root=str(tmp_path / "elsewhere"))) == []


def test_the_number_of_ranks_is_part_of_a_training_only_where_it_sets_the_global_batch(make_config: MakeConfig) -> None:
    assert stale(make_config("train.ranks=2"), make_config("train.ranks=1")) == ["train", "eval", "export", "report"]
    fixed = "train.global_batch=12"
    assert stale(make_config(fixed, "train.ranks=2"), make_config(fixed, "train.ranks=1")) == []


def test_a_local_teacher_counts_by_its_files(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    config = make_config(teacher={"kind": "hf", "model": str(folder)})
    before = plan_run(config).stages[1].digest
    (folder / "config.json").write_text('{"a": 1}')
    assert plan_run(config).stages[1].digest != before


def test_a_raised_stage_version_makes_the_stage_stale(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_run(make_config())
    monkeypatch.setitem(stages.STAGE_VERSIONS, "eval", 99)
    after = plan_run(make_config())
    changed = [a.name for a, b in zip(before.stages, after.stages, strict=True) if a.digest != b.digest]
    assert changed == ["eval", "export", "report"]


def test_folders_and_jobs_fit_together(make_config: MakeConfig, tmp_path: Path) -> None:
    plan = plan_run(make_config(dump_name="shared"))
    _, dump, train, evaluate, export, report = plan.stages
    assert dump.folder == tmp_path / "dumps" / "shared" / "shards"
    assert train.job_file == tmp_path / "runs" / "r" / "jobs" / "train.json"
    assert train.log == tmp_path / "runs" / "r" / "logs" / "train.log"
    assert isinstance(dump.job, DumpJob)
    assert isinstance(train.job, TrainJob)
    assert isinstance(evaluate.job, EvalJob)
    assert dump.job.corpus == tmp_path / "dumps" / "shared" / "corpus"
    assert train.job.shards == evaluate.job.shards == dump.folder
    assert evaluate.job.model == train.folder / "model"
    assert (export.folder.name, report.job) == ("export", None)


def test_variants_share_the_dump_and_one_report(make_config: MakeConfig) -> None:
    plan = plan_run(make_config(variants={"soft": {}, "hard": {"train.loss.hybrid": 0}}))
    assert [s.label for s in plan.stages] == [
        "prepare",
        "dump",
        "train (soft)",
        "eval (soft)",
        "train (hard)",
        "eval (hard)",
        "report",
    ]
    alone = plan_run(make_config())
    assert plan.stages[2].digest == alone.stages[2].digest, "the same settings are the same training"
    assert [s.label for s in plan.until("dump")] == ["prepare", "dump"]


def test_a_report_alone_needs_no_export(make_config: MakeConfig) -> None:
    assert [s.name for s in plan_run(make_config()).until("report")] == ["prepare", "dump", "train", "eval", "report"]


@pytest.mark.parametrize(
    ("given", "expected"), [("[nowhere.txt]", "nowhere.txt: no such file"), ("[]", "prepare.input: empty")]
)
def test_a_corpus_that_is_not_there_is_refused_by_name(make_config: MakeConfig, given: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plan_run(make_config(f"prepare.input={given}"))


@pytest.mark.parametrize(("visible", "expected"), [("0,1,2", 3), ("", 0), ("-1", 0), ("GPU-1a", 1)])
def test_visible_devices_decide_the_number_of_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_gpus() == expected
