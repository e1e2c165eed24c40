"""Phase two's training stage from start to finished model: claim, build, resume, step, save, hand over.

The mathematics of a step is in `module`, the order of rows in `shards.order`, the engine in `engine`.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards import Dataset, open_dataset, steps_per_epoch
from shards.errors import UserError
from shards.files import write_json
from shards.job import Emit
from shards.stage import StageFolder, claim, read_marker

from . import checkpoint
from .build import build_student
from .checkpoint import Cursor
from .config import TrainConfig, TrainJob
from .data import Slice, StepBatch, label_counts, load_step, log_unigram, prefetched
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
from .fit import check_same_teacher, open_captures, tokenizer_folder
from .losses import part_names
from .metrics import MetricsLog
from .model.files import save_model
from .model.lm import Student
from .module import DistillModule, loss_scale
from .progress import Progress
from .provenance import provenance
from .ranks import device, on_rank_0, rank, sum_over_ranks, world
from .schedule import learning_rate, parameter_groups
from .stop import EXIT_STOPPED, StopWish


def run(job: TrainJob, emit: Emit) -> None:
    """Train `job`'s student, or go on where an earlier start was stopped.

    Raises:
        UserError: on every rank alike.
        SystemExit: code 143 after a stop that was asked for; the checkpoint is saved.
    """
    marker = read_marker(job.output)
    if marker is not None and marker.done and marker.digest == job.digest:
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
    accumulation: int
    deepspeed: dict[str, Any]

    @property
    def data(self) -> Dataset:
        return self.datasets["train"]


def _check(job: TrainJob) -> _Inputs:
    """Open the shards and settle the engine's JSON; the user's mistakes surface here, on every rank alike."""
    datasets = {"train": open_captures(job.shards, "train")}
    if (job.shards / "val").exists():
        datasets["val"] = open_dataset(job.shards / "val")
        check_same_teacher(datasets["train"].header, datasets["val"].header, job.shards / "val")
    accumulation = accumulation_steps(job.train, world())
    config = deepspeed_config(job.train, accumulation=accumulation, bfloat16=uses_bfloat16(job.train))
    return _Inputs(datasets, accumulation, config)


def total_steps(train: TrainConfig, num_rows: int, global_batch: int) -> int:
    """Steps of the whole run, were there no time box: `steps`, else `epochs`."""
    return train.steps if train.steps is not None else train.epochs * steps_per_epoch(num_rows, global_batch)


def _train(job: TrainJob, inputs: _Inputs, emit: Emit) -> dict[str, Any]:
    train, root, data = job.train, job.output / "checkpoints", inputs.data
    header = data.header
    tag = checkpoint.find(root, digest=job.digest)
    bias = None
    if train.init_bias == "unigram" and tag is None:
        bias = log_unigram(label_counts(data, header.vocab_size))
    student = build_student(train, header.vocab_size, header.vocab_rows, bias)
    parameters = sum(p.numel() for p in student.parameters())
    module = DistillModule(student, train.loss, header.vocab_size)
    decayed = [f"student.{name}" for name in student.decay_groups()[0]]
    engine = start_engine(module, parameter_groups(module, decayed, train.optimizer), inputs.deepspeed)
    held = held_here(engine)
    text = f"{parameters:,} parameters; rank 0 of {world()} holds {held:,} (ZeRO-{train.zero_stage})"
    emit({"event": "note", "text": text})
    on_rank_0(lambda: write_json(job.output / "deepspeed.json", inputs.deepspeed))
    if tag is None:
        facts = provenance(inputs.datasets, job.digest, world())
        on_rank_0(lambda: write_json(job.output / "provenance.json", facts))
    cursor = Cursor() if tag is None else checkpoint.load(engine, root, tag)
    if tag is not None:
        emit({"event": "note", "text": f"going on after step {cursor.step} ({root / tag})"})

    global_batch = train.batch_size * inputs.accumulation * world()
    ours = Slice(train.seed, global_batch, train.batch_size, rank(), world())
    steps = total_steps(train, len(data), global_batch)
    cursor = _Trainer(job, emit, engine, data, ours, steps).run(cursor)

    Progress(emit, "train", "steps").show(cursor.step, cursor.step, "writing the model")
    whole = _whole_student(engine, job, data)
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


@dataclass
class _Trainer:
    """The stepping part of a run."""

    job: TrainJob
    emit: Emit
    engine: Any
    data: Dataset
    ours: Slice
    steps: int
    _saved: int = 0

    def run(self, cursor: Cursor) -> Cursor:
        """Step from `cursor` until steps, epochs or the time box end the run; checkpoints on the way."""
        train = self.job.train
        stop = StopWish()
        stop.listen()
        log = MetricsLog(self.job.output / "metrics.jsonl", cursor.metrics_bytes) if rank() == 0 else None
        self._saved = cursor.step
        self._progress = Progress(self.emit, "train", "steps")
        limit = math.inf if train.max_minutes is None else 60 * train.max_minutes
        begun = time.monotonic() - cursor.seconds
        first, last = cursor.step, cursor.step if cursor.finished else self.steps
        with contextlib.closing(prefetched(lambda s: load_step(self.data, self.ours, s), first, last)) as batches:
            for batch in batches:
                time_up = rank() == 0 and batch.step > 0 and cursor.seconds >= limit
                *counts, stopped, late = sum_over_ranks(
                    [batch.weight, batch.tokens, batch.scored, stop.wished, time_up]
                )
                if stopped:
                    self._stop(cursor, log)
                if late:
                    break
                line = self._step(batch, counts[0], counts[2])
                seconds = time.monotonic() - begun
                took, cursor = (
                    seconds - cursor.seconds,
                    replace(cursor, step=batch.step + 1, seconds=seconds, tokens=cursor.tokens + int(counts[1])),
                )
                line |= {"tokens": cursor.tokens, "tokens_per_s": counts[1] / took, "seconds": seconds}
                if log and (cursor.step % train.log_every == 0 or cursor.step == self.steps):
                    log.write(line)
                self._show(cursor, line["loss"], limit)
                if cursor.step % train.checkpoint_every == 0 and cursor.step < self.steps:
                    cursor = self._save(cursor, log)
        if not cursor.finished:
            cursor = self._save(replace(cursor, finished=True), log)
        return cursor

    def _step(self, batch: StepBatch, weight: float, scored: float) -> dict[str, Any]:
        """One optimizer step; its line for the metrics file. `weight`, `scored`: sums over all ranks."""
        train, engine = self.job.train, self.engine
        rate = learning_rate(batch.step, self.steps, train.optimizer)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        scale = torch.tensor(loss_scale(weight, self.ours.world, len(batch.micro)), device=device())
        sums = torch.zeros(1 + len(part_names(train.loss)), dtype=torch.float64, device=device())
        for k, (tokens_in, targets) in enumerate(batch.micro):
            loss, parts = engine(tokens_in.to(device()), targets.to(device()), scale)
            sums += parts
            engine.backward(loss)
            if k == len(batch.micro) - 1:  # before the weights change
                means = [x / max(weight, 1.0) for x in sum_over_ranks(sums.tolist())]
                self._refuse_nonfinite(batch, "loss", means[0])
            engine.step()
        norm = engine.get_global_grad_norm()
        norm = None if norm is None else float(norm)
        if norm is not None:
            self._refuse_nonfinite(batch, "gradient norm", norm)
        parts_by_name = dict(zip(part_names(train.loss), means[1:], strict=True))
        return {"step": batch.step + 1, "epoch": batch.epoch, "loss": means[0], **parts_by_name} | {
            "lr": rate,
            "grad_norm": norm,
            "scored": int(scored),
        }

    def _refuse_nonfinite(self, batch: StepBatch, what: str, value: float) -> None:
        """Stop all ranks when a figure (equal on all of them) is NaN or infinite; each saves its batch."""
        if math.isfinite(value):
            return
        path = self.job.output / f"nonfinite-step{batch.step + 1}-rank{rank()}.pt"
        torch.save({"rows": batch.rows, "micro": batch.micro}, path)
        raise UserError(
            f"{what} of step {batch.step + 1}: {value}; the batch is in {path}; "
            f"lower train.optimizer.learning_rate (now {self.job.train.optimizer.learning_rate}) or raise warmup_steps"
        )

    def _save(self, cursor: Cursor, log: MetricsLog | None) -> Cursor:
        """Checkpoint `cursor`; the metrics file is made durable first."""
        cursor = replace(cursor, metrics_bytes=on_rank_0(lambda: log.sync() if log else 0))
        root, keep = self.job.output / "checkpoints", self.job.train.keep_checkpoints
        checkpoint.save(self.engine, root, cursor, digest=self.job.digest, keep=keep)
        self._saved = cursor.step
        return cursor

    def _stop(self, cursor: Cursor, log: MetricsLog | None) -> None:
        if cursor.step > self._saved:
            self._save(cursor, log)
        self.emit({"event": "note", "text": f"stopped after step {cursor.step}; the same command goes on from there"})
        raise SystemExit(EXIT_STOPPED)

    def _show(self, cursor: Cursor, loss: float, limit: float) -> None:
        """A progress event; with a time box, `total` is the steps that it will allow."""
        total = self.steps
        if limit < math.inf:
            total = max(cursor.step, min(total, int(cursor.step * limit / cursor.seconds)))
        rate = cursor.tokens / cursor.seconds
        self._progress.show(cursor.step, total, f"loss {loss:.4f}, {rate:,.0f} tokens/s")


def _whole_student(engine: Any, job: TrainJob, data: Dataset) -> Student | None:
    """The trained student in float32 on the CPU of rank 0; every rank takes part in the gathering."""
    state = {}
    for name, parameter in engine.module.student.named_parameters():
        whole = full_parameter(parameter)
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
