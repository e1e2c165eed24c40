"""Held-out figures of a trained student, its untrained twin and a unigram, from shards alone; no teacher, no engine.

Estimated KL is the `hybrid` loss over validation captures (unbiased); exact KL is over the probe's full distributions.
The untrained twin has the same seed and a zero output bias; the unigram is smoothed from the training labels.
The seed's scores: consistency (share of the teacher's top 5 among the student's top 5; where the adaptive head holds
fewer than 5 ids, of those it holds), transfer (exp(-KL)), overall (their mean).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards import Dataset, Probe, Row, read_probe
from shards.errors import UserError
from shards.files import write_json
from shards.job import Emit
from shards.stage import claim

from .build import build_student
from .config import EvalJob
from .data import collate, label_counts, log_unigram
from .fit import check_same_teacher, open_captures, tokenizer_folder
from .losses import Targets
from .model.files import load_model
from .model.lm import Student
from .module import TokenBatch
from .progress import Progress
from .ranks import device
from .samples import generated_line, sample_positions
from .scores import Positions, Predictor, mean_and_error, score, score_exactly, student_predictor, unigram_predictor

ROWS_PER_BATCH = 8
SUMMARY = ("kl_exact", "kl_estimate", "cross_entropy", "top1_agreement")


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some validation rows on the device; `row_of` [N] says which row a position belongs to."""

    rows: list[Row]
    tokens: TokenBatch
    targets: Targets
    row_of: Tensor


def run(job: EvalJob, emit: Emit) -> None:
    """Write `output/eval.json`.

    Raises:
        UserError: model and shards do not fit, or something is missing.
    """
    with claim(job.output, "eval", job.digest) as stage:
        result = evaluate(job, emit)
        write_json(job.output / "eval.json", result)
        student = result["student"]
        stage.finish(
            {k: student[k] for k in ("kl_exact", "kl_estimate", "cross_entropy", "top1_agreement") if k in student}
        )


def evaluate(job: EvalJob, emit: Emit) -> dict[str, Any]:
    """The content of eval.json."""
    val, train = open_captures(job.shards, "val"), open_captures(job.shards, "train")
    check_same_teacher(train.header, val.header, job.shards / "val")
    student = load_model(job.model)
    _check_fits(student, val, job)
    header = val.header
    unigram = torch.from_numpy(log_unigram(label_counts(train, header.vocab_size)))
    twin = build_student(job.train, header.vocab_size, header.vocab_rows)
    predictors = {
        "student": student_predictor(student.to(device()).eval()),
        "untrained": student_predictor(twin.to(device()).eval()),
        "unigram": unigram_predictor(unigram.to(device())),
    }
    probe_path = job.shards / "teacher" / "probe.arrow"
    probe = read_probe(probe_path) if probe_path.exists() else None

    progress = Progress(emit, "eval", "positions")
    result: dict[str, Any] = _on_captures(predictors, val, job.eval.max_positions, progress)
    if probe is not None and len(probe.position):
        for name, figures in _on_probe(predictors, val, probe, progress).items():
            result[name] |= figures
        result["probe_positions"] = len(probe.position)
    tokenizer = tokenizer_folder(job.shards)
    result["samples"] = sample_positions(predictors["student"], val, probe, tokenizer, job.eval.samples)
    result["generated"] = generated_line(student, tokenizer, job.eval)
    return result


def _check_fits(student: Student, val: Dataset, job: EvalJob) -> None:
    if student.vocab_size != val.header.vocab_size:
        raise UserError(
            f"{job.model}: made for {student.vocab_size} tokens, {job.shards / 'val'} has {val.header.vocab_size}; "
            "evaluate it on the shards of its own teacher"
        )


def _batches(val: Dataset, max_positions: int) -> Iterator[_Batch]:
    """Whole rows in order until `max_positions` are reached (at least one row)."""
    done = 0
    for start in range(0, len(val), ROWS_PER_BATCH):
        rows = []
        for row in val.rows(start, start + ROWS_PER_BATCH):
            if done and done + row.num_scored > max_positions:
                break
            rows.append(row)
            done += row.num_scored
        if sum(row.num_scored for row in rows):
            tokens, targets = collate(rows)
            row_of = torch.from_numpy(np.repeat([row.row_id for row in rows], [row.num_scored for row in rows]))
            yield _Batch(rows, tokens.to(device()), targets.to(device()), row_of.long())
        if len(rows) < ROWS_PER_BATCH:
            return


def _on_captures(
    predictors: dict[str, Predictor], val: Dataset, max_positions: int, progress: Progress
) -> dict[str, Any]:
    """Figures from the validation captures, for every predictor, and the teacher's own."""
    found: dict[str, list[Positions]] = {name: [] for name in predictors}
    groups, teacher, entropy, text_bytes = [], [], [], 0
    total = min(max_positions, val.num_scored)
    done = 0
    for batch in _batches(val, max_positions):
        for name, predict in predictors.items():
            found[name].append(score(predict, batch.tokens, batch.targets))
        captures = [row.capture for row in batch.rows if row.capture is not None]
        teacher += [-c.label_logprob.astype(np.float64) for c in captures]
        entropy += [c.entropy.astype(np.float64) for c in captures]
        text_bytes += sum(row.scored_bytes for row in batch.rows)
        groups.append(batch.row_of)
        done += len(batch.row_of)
        progress.show(done, max(done, total), "validation captures")
    figures: dict[str, Any] = {"positions": done, "rows": len(torch.unique(torch.cat(groups))), "bytes": text_bytes}
    for name, parts in found.items():
        figures[name] = _figures(parts, torch.cat(groups), text_bytes)
    figures["teacher"] = _label_figures(float(np.concatenate(teacher).mean()), done, text_bytes)
    figures["teacher"]["entropy"] = float(np.concatenate(entropy).mean())
    return figures


def _figures(parts: list[Positions], groups: Tensor, text_bytes: int) -> dict[str, float]:
    kl, error = mean_and_error(torch.cat([p.kl for p in parts]), groups)
    ce = float(torch.cat([p.cross_entropy for p in parts]).mean())
    figures = {"kl_estimate": kl, "kl_estimate_error": error} | _label_figures(ce, len(groups), text_bytes)
    figures["top1_agreement"] = float(torch.cat([p.top1 for p in parts]).nanmean())
    figures["consistency"] = float(torch.cat([p.consistency for p in parts]).nanmean())
    figures["transfer"] = math.exp(-max(0.0, kl))
    figures["overall"] = (figures["consistency"] + figures["transfer"]) / 2
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _label_figures(cross_entropy: float, positions: int, text_bytes: int) -> dict[str, float]:
    """Cross-entropy (nats a token) and what follows from it."""
    figures = {"cross_entropy": cross_entropy, "perplexity": math.exp(min(cross_entropy, 700.0))}
    if text_bytes:
        figures["bits_per_byte"] = cross_entropy * positions / math.log(2) / text_bytes
    return figures


def _on_probe(
    predictors: dict[str, Predictor], val: Dataset, probe: Probe, progress: Progress
) -> dict[str, dict[str, float]]:
    """Exact figures over the probe's positions."""
    kl: dict[str, list[Tensor]] = {name: [] for name in predictors}
    acceptance: dict[str, list[Tensor]] = {name: [] for name in predictors}
    order = np.argsort(probe.val_row, kind="stable")
    groups = torch.from_numpy(probe.val_row[order])
    done = 0
    for val_row, entries in groupby(order, key=lambda e: int(probe.val_row[e])):
        at = np.asarray(list(entries))
        tokens, _ = collate([val[val_row]])
        index = torch.from_numpy(probe.position[at]).to(device())
        for name, predict in predictors.items():
            exact = score_exactly(predict, tokens.to(device()), index, torch.from_numpy(probe.logprobs[at]))
            kl[name].append(exact.kl)
            acceptance[name].append(exact.acceptance)
        done += len(at)
        progress.show(done, len(order), "full distributions of the probe")
    figures = {}
    for name in predictors:
        mean, error = mean_and_error(torch.cat(kl[name]), groups)
        figures[name] = {"kl_exact": mean, "acceptance": float(torch.cat(acceptance[name]).mean())}
        if math.isfinite(error):
            figures[name]["kl_exact_error"] = error
    return figures
