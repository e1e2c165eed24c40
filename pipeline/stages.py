"""Which stages a run has, what each depends on (its digest), where it writes, and the job that its process gets.

A stage is done when the marker in its folder carries its digest. Digests chain: a stage's digest contains those of
the stages it reads, so a changed setting makes stale what depends on it and nothing else. Running is in `run`.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from shards.files import digest
from shards.stage import is_done
from student_train.config import EvalJob, ExportJob, TrainConfig, TrainJob
from teacher_dump.config import DumpConfig, DumpJob, HFTeacher, PrepareConfig, PrepareJob, Teacher

from .config import RunConfig
from .identity import absolute_if_there, corpus_identity, place_identity, teacher_identity
from .load import variant_config

Name = Literal["prepare", "dump", "train", "eval", "export", "report"]

# Raise a number when a stage writes something else for the same settings; what was done before is then done anew.
STAGE_VERSIONS: dict[Name, int] = {"prepare": 1, "dump": 1, "train": 1, "eval": 2, "export": 1, "report": 1}


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: Name
    folder: Path
    digest: str
    job: BaseModel | None
    """What the process gets; None: the conductor does it itself (report)."""
    python: str | None = None
    """Interpreter, if not this one."""
    variant: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def job_file(self) -> Path:
        return self.folder.parent / "jobs" / f"{self._stem}.json"

    @property
    def log(self) -> Path:
        return self.folder.parent / "logs" / f"{self._stem}.log"

    @property
    def _stem(self) -> str:
        """The stage's name inside a run; a folder of the user's choice gives its own, for others may lie beside it."""
        return self.name if self.folder.name in ("corpus", "shards", self.name) else self.folder.name

    def is_done(self) -> bool:
        return is_done(self.folder, self.name, self.digest)


@dataclass(frozen=True)
class Student:
    """The stages of one student: of the run itself, or of one variant."""

    config: RunConfig
    folder: Path
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Plan:
    """Every stage of a run, in order."""

    config: RunConfig
    run_folder: Path
    dump_folder: Path
    stages: tuple[Stage, ...]
    students: dict[str, Student]
    """By variant name; "" for a run without variants."""

    def until(self, name: Name) -> tuple[Stage, ...]:
        """The stages up to the last one called `name`, without an export that a report does not need."""
        last = max(i for i, stage in enumerate(self.stages) if stage.name == name)
        skipped = {"export"} if name == "report" else set()
        return tuple(stage for stage in self.stages[: last + 1] if stage.name not in skipped)


def plan_run(config: RunConfig) -> Plan:
    """The stages of a run. Reads the corpus files (to hash them), starts nothing.

    Raises:
        UserError: a corpus file is missing.
    """
    config = _local(config)
    dump_folder = config.root / "dumps" / (config.dump_name or config.name)
    run_folder = config.root / "runs" / config.name
    prepare = prepare_stage(config.teacher, config.prepare, dump_folder / "corpus")
    dump = dump_stage(config.teacher, config.dump, prepare.folder, prepare.digest, dump_folder / "shards")
    if config.variants:
        students = {n: _student(variant_config(config, n), run_folder / n, dump, n) for n in config.variants}
    else:
        students = {"": _student(config, run_folder, dump, "")}
    inner = [stage for student in students.values() for stage in student.stages]
    content = {"version": STAGE_VERSIONS["report"], "name": config.name}
    content["evals"] = [s.digest for s in inner if s.name == "eval"]
    report = Stage("report", run_folder / "report", digest(content), None)
    return Plan(config, run_folder, dump_folder, (prepare, dump, *inner, report), students)


def prepare_stage(teacher: Teacher, prepare: PrepareConfig, folder: Path) -> Stage:
    """Corpus files -> rows, into `folder`."""
    content: dict[str, Any] = {"version": STAGE_VERSIONS["prepare"], "corpus": corpus_identity(prepare.input)}
    content["prepare"] = prepare.model_dump(mode="json", exclude={"input", "tokenizer"})
    content["tokenizer"] = place_identity(prepare.tokenizer) if prepare.tokenizer else teacher_identity(teacher)
    key = digest(content)
    job = PrepareJob(teacher=teacher, prepare=prepare, output=folder, digest=key)
    return Stage("prepare", folder, key, job, teacher.python)


def dump_stage(teacher: Teacher, dump: DumpConfig, corpus: Path, corpus_digest: str, folder: Path) -> Stage:
    """Rows in `corpus` -> captures, into `folder`."""
    content = {"version": STAGE_VERSIONS["dump"], "corpus": corpus_digest, "teacher": teacher_identity(teacher)}
    key = digest({**content, "dump": dump.model_dump(mode="json")})
    job = DumpJob(teacher=teacher, dump=dump, corpus=corpus, output=folder, digest=key)
    return Stage("dump", folder, key, job, teacher.python)


def num_ranks(config: RunConfig) -> int:
    """Training processes: as configured, else one a GPU, else one."""
    return config.train.ranks if isinstance(config.train.ranks, int) else max(1, num_gpus())


def num_gpus() -> int:
    """NVIDIA GPUs that children will see, asked without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() and d.strip() != "-1"])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def _student(config: RunConfig, folder: Path, dump: Stage, variant: str) -> Student:
    train_key = digest(
        {"version": STAGE_VERSIONS["train"], "dump": dump.digest, "train": _training_identity(config.train)}
    )
    eval_key = digest(
        {"version": STAGE_VERSIONS["eval"], "train": train_key, "eval": config.eval.model_dump(mode="json")}
    )
    export_key = digest(
        {"version": STAGE_VERSIONS["export"], "eval": eval_key, "export": config.export.model_dump(mode="json")}
    )
    train, evaluate, export = folder / "train", folder / "eval", folder / "export"
    train_job = TrainJob(train=config.train, shards=dump.folder, output=train, digest=train_key)
    eval_job = EvalJob(
        eval=config.eval,
        train=config.train,
        model=train / "model",
        shards=dump.folder,
        output=evaluate,
        digest=eval_key,
    )
    export_job = ExportJob(
        export=config.export,
        model=train / "model",
        evaluation=evaluate / "eval.json",
        output=export,
        digest=export_key,
    )
    stages = [
        Stage("train", train, train_key, train_job, variant=variant),
        Stage("eval", evaluate, eval_key, eval_job, variant=variant),
    ]
    if not variant:  # variants are there to be compared; one is exported by name
        stages.append(Stage("export", export, export_key, export_job))
    return Student(config, folder, tuple(stages))


def _training_identity(train: TrainConfig) -> dict[str, Any]:
    """The settings that decide a training's result; on how many processes it runs is none, unless it sets the batch."""
    machine = {"threads", "keep_checkpoints"} | ({"ranks"} if train.global_batch is not None else set())
    return train.model_dump(mode="json", exclude=machine)


def _local(config: RunConfig) -> RunConfig:
    """Every local path made independent of the working directory."""
    teacher = config.teacher
    if isinstance(teacher, HFTeacher):
        places = {"model": absolute_if_there(teacher.model), "tokenizer": absolute_if_there(teacher.tokenizer)}
        teacher = teacher.model_copy(update=places)
    prepare = config.prepare.model_copy(
        update={
            "input": tuple(path.expanduser().absolute() for path in config.prepare.input),
            "tokenizer": absolute_if_there(config.prepare.tokenizer),
        }
    )
    return config.model_copy(
        update={"teacher": teacher, "prepare": prepare, "root": config.root.expanduser().absolute()}
    )
