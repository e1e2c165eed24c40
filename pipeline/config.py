"""The whole run in one frozen object; sections are named after the stages they steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from student_train.config import EvalConfig, ExportConfig, TrainConfig
from teacher_dump.config import DumpConfig, PackagedTeacher, PrepareConfig, Strict, Teacher


class SweepConfig(Strict):
    """Many students over one dump; a control trained on the text alone is always among them."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted key -> values; every combination is trained."""
    points: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    """Single students, each as dotted overrides, beside or instead of the grid."""
    seeds: tuple[int, ...] = ()
    """Each student is trained once for each of them; empty: with train.seed only."""

    @model_validator(mode="after")
    def _something(self) -> SweepConfig:
        if not self.grid and not self.points:
            raise ValueError("nothing to sweep: give grid (key: [values]) or points (a list of overrides)")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} has one twice")
        return self


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
    sweep: SweepConfig | None = None
    """Variants written as a grid or list; they join those above."""
