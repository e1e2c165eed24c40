"""Phase two's training stage from start to finished model: claim, build, resume, step, save, hand over.

Stepping is in `trainer`, the mathematics of a step in `module`, the order of rows in `shards.order`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shards import Dataset, open_dataset, steps_per_epoch
from shards.files import write_json
from shards.job import Emit
from shards.stage import StageFolder, claim, is_done

from . import checkpoint
from .average import WeightAverage
from .build import build_student
from .checkpoint import Cursor, Found
from .config import TrainConfig, TrainJob
from .data import Slice, Wanted, label_counts, log_unigram
from .engine import (
    accumulation_steps,
    deepspeed_config,
    full_parameter,
    held_here,
    join_ranks,
    prepare_process,
    start_engine,
    uses_bfloat16,
)
from .fit import check_same_teacher, check_sources, open_captures, temperature_column, tokenizer_folder
from .model.files import save_model
from .model.lm import Student
from .module import DistillModule
from .progress import Progress
from .provenance import provenance
from .ranks import on_rank_0, rank, world
from .schedule import parameter_groups
from .trainer import Trainer


def run(job: TrainJob, emit: Emit) -> None:
    """Train `job`'s student, or go on where an earlier start was stopped.

    Raises:
        UserError: on every rank alike.
        SystemExit: code 143 after a stop that was asked for; the checkpoint is saved.
    """
    if is_done(job.output, "train", job.digest):
        emit({"event": "note", "text": f"{job.output}: already trained"})
        return
    prepare_process(job.train)
    inputs = _check(job)
    join_ranks()
    try:
        with contextlib.ExitStack() as stack:
            claimed: list[StageFolder] = []
            on_rank_0(lambda: claimed.append(stack.enter_context(claim(job.output, "train", job.digest))))
            summary = _train(job, inputs, emit)
            on_rank_0(lambda: claimed[0].finish(summary))
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a run reads, found fit before anything is written."""

    datasets: dict[str, Dataset]
    wanted: Wanted

    @property
    def data(self) -> Dataset:
        return self.datasets["train"]


def _check(job: TrainJob) -> _Inputs:
    """Open the shards; the user's mistakes surface here, on every rank alike, before anything is written."""
    datasets = {"train": open_captures(job.shards, "train", order="any")}
    if (job.shards / "val").exists():
        datasets["val"] = open_dataset(job.shards / "val")
        check_same_teacher(datasets["train"].header, datasets["val"].header, job.shards / "val")
    loss, place = job.train.loss, job.shards / "train"
    wanted = Wanted(loss, temperature_column(datasets["train"].header, loss, place))
    check_sources(datasets["train"], loss, place)
    _settle(job.train, None)
    return _Inputs(datasets, wanted)


def _settle(train: TrainConfig, found: Found | None) -> tuple[int, dict[str, Any]]:
    """The global batch and the engine's JSON.

    Raises:
        UserError: the global batch does not divide, or `train.deepspeed` contradicts another setting.
    """
    accumulation = accumulation_steps(train, world(), found.global_batch if found else None)
    moved = found is not None and found.world != world()
    config = deepspeed_config(train, accumulation=accumulation, bfloat16=uses_bfloat16(train), universal=moved)
    return train.batch_size * accumulation * world(), config


def total_steps(train: TrainConfig, num_rows: int, global_batch: int) -> int:
    """Steps of the whole run, were there no time box: `steps`, else `epochs`."""
    return train.steps if train.steps is not None else train.epochs * steps_per_epoch(num_rows, global_batch)


def _train(job: TrainJob, inputs: _Inputs, emit: Emit) -> dict[str, Any]:
    train, root, data = job.train, job.output / "checkpoints", inputs.data
    header = data.header
    found = checkpoint.find(root, digest=job.digest)
    global_batch, deepspeed = _settle(train, found)
    bias = None
    if train.init_bias == "unigram" and found is None:
        bias = log_unigram(label_counts(data, header.vocab_size))
    student = build_student(train, header.vocab_size, header.vocab_rows, bias)
    student.recompute = train.activation_checkpointing
    parameters = sum(p.numel() for p in student.parameters())
    module = DistillModule(student, train.loss, header.vocab_size)
    decayed = [f"student.{name}" for name in student.decay_groups()[0]]
    engine = start_engine(module, parameter_groups(module, decayed, train.optimizer), deepspeed)
    held = held_here(engine)
    text = f"{parameters:,} parameters; rank 0 of {world()} holds {held:,} (ZeRO-{train.zero_stage})"
    emit({"event": "note", "text": text})
    on_rank_0(lambda: write_json(job.output / "deepspeed.json", deepspeed))
    if found is None:
        facts = provenance(inputs.datasets, job.digest, world())
        on_rank_0(lambda: write_json(job.output / "provenance.json", facts))
    cursor = Cursor() if found is None else checkpoint.load(engine, root, found)
    average = None if train.ema is None else WeightAverage(engine.module.student, train.ema)
    if average is not None and found is not None:
        average.load(root / found.tag)
    if found is not None:
        moved = "" if found.world == world() else f", written by {found.world} ranks, now {world()}"
        emit({"event": "note", "text": f"going on after step {cursor.step} ({root / found.tag}{moved})"})

    ours = Slice(train.seed, global_batch, train.batch_size, rank(), world(), train.shuffle)
    steps = total_steps(train, len(data), global_batch)
    cursor = Trainer(job, emit, engine, data, ours, steps, inputs.wanted, average).run(cursor)

    Progress(emit, "train", "steps").show(cursor.step, cursor.step, "writing the model")
    whole = _whole_student(engine, job, data, average)
    meta = {"fingerprints": header.fingerprints, "steps": cursor.step, "digest": job.digest}
    on_rank_0(lambda: _publish_model(job, whole, meta))
    return {
        "steps": cursor.step,
        "loss": on_rank_0(lambda: _last_loss(job.output / "metrics.jsonl")),
        "minutes": cursor.seconds / 60,
        "tokens": cursor.tokens,
        "tokens_per_s": cursor.tokens / cursor.seconds if cursor.seconds else 0.0,
        "parameters": parameters,
        "ranks": world(),
        "zero_stage": train.zero_stage,
    }


def _whole_student(engine: Any, job: TrainJob, data: Dataset, average: WeightAverage | None) -> Student | None:
    """The trained student, or its average, in float32 on the CPU of rank 0; every rank takes part in the gathering."""
    state = {}
    for name, parameter in engine.module.student.named_parameters():
        whole = full_parameter(parameter) if average is None else average.whole(name)
        if rank() == 0:
            state[name] = whole
    if rank() != 0:
        return None
    student = build_student(job.train, data.header.vocab_size, data.header.vocab_rows)
    names = {name for name, _ in student.named_parameters()}
    assert names == set(state), names ^ set(state)
    student.load_state_dict(state, strict=False)  # buffers (wiring masks) follow from the config
    return student


def _publish_model(job: TrainJob, student: Student | None, meta: dict[str, Any]) -> None:
    """Write `model/` aside and rename it: it is whole or not there."""
    assert student is not None
    final, aside = job.output / "model", job.output / "model.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    save_model(aside, student, tokenizer_folder(job.shards), meta)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


def _last_loss(path: Path) -> float | None:
    lines = path.read_text(encoding="utf-8").splitlines()
    return None if not lines else float(json.loads(lines[-1])["loss"])
