"""The stepping part of a training run: from a cursor to its end, with metrics, checkpoints and stops on the way.

Building the student, claiming the folder and writing the model are `loop`'s.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from shards import Dataset
from shards.errors import UserError
from shards.job import Emit

from . import checkpoint
from .average import WeightAverage
from .checkpoint import Cursor, Keeping
from .config import TrainJob
from .data import Slice, StepBatch, Wanted, load_step, prefetched
from .metrics import MetricsLog
from .module import loss_scale
from .progress import Progress
from .ranks import device, on_rank_0, rank, sum_over_ranks
from .schedule import learning_rate
from .stop import EXIT_STOPPED, StopWish


@dataclass
class Trainer:
    """The stepping part of a run."""

    job: TrainJob
    emit: Emit
    engine: Any
    data: Dataset
    ours: Slice
    steps: int
    wanted: Wanted
    average: WeightAverage | None = None
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
        with contextlib.closing(
            prefetched(lambda s: load_step(self.data, self.ours, s, self.wanted), first, last)
        ) as batches:
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
                rate = counts[1] / (seconds - cursor.seconds)
                cursor = replace(cursor, step=batch.step + 1, seconds=seconds, tokens=cursor.tokens + int(counts[1]))
                line |= {"tokens": cursor.tokens, "tokens_per_s": rate, "seconds": seconds}
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
        sums = torch.zeros(1 + len(train.loss.parts), dtype=torch.float64, device=device())
        for k, (tokens_in, targets) in enumerate(batch.micro):
            loss, parts = engine(tokens_in.to(device()), targets.to(device()), scale)
            sums += parts
            engine.backward(loss)
            if k == len(batch.micro) - 1:  # before the weights change
                means = [x / (weight or 1.0) for x in sum_over_ranks(sums.tolist())]
                self._refuse_nonfinite(batch, "loss", means[0])
            engine.step()
        if self.average is not None:
            self.average.update(batch.step)
        norm = engine.get_global_grad_norm()
        norm = None if norm is None else float(norm)
        if norm is not None:
            self._refuse_nonfinite(batch, "gradient norm", norm)
        parts_by_name = dict(zip(train.loss.parts, means[1:], strict=True))
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
        how = Keeping(self.job.digest, self.ours.world, self.ours.global_batch, self.job.train.keep_checkpoints)
        checkpoint.save(self.engine, self.job.output / "checkpoints", cursor, how, self.average)
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
