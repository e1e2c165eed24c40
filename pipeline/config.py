"""The whole run in one frozen object; sections are named after the stages they steer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from student_train.config import EvalConfig, ExportConfig, TrainConfig
from teacher_dump.config import DumpConfig, PackagedTeacher, PrepareConfig, Strict, Teacher


class RunConfig(Strict):
    """One YAML file (plus overrides) after validation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
    """The run's folder under runs/."""
    dump_name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The dump's folder under dumps/; default: the name. Give another run's to reuse its shards."""
    root: Path = Path()
    """Where dumps/ and runs/ lie; relative paths count from the working directory."""
    teacher: Teacher = PackagedTeacher()
    prepare: PrepareConfig = PrepareConfig()
    dump: DumpConfig = DumpConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Students to compare over one dump: name -> dotted overrides. Empty: one student."""
