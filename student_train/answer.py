"""What a student says at the scored positions of chosen rows: a process that answers questions line by line.

A question is a JSON line on standard input, its answer one event on standard output, in order:

    {"data": NAME, "rows": [r, ...], "detail": bool}  ->  {"event": "scores", "data", "rows": [{"row": r, ...}, ...]}

Every list has one entry a scored position: `kl`, `label_logprob`, `entropy` (nats); with `detail` also `top_ids` and
`top_logprobs` (the student's own most likely), and `support_logprobs` (at the stored ids, head first, then tail).
A question that cannot be answered gets {"event": "refused", "text"}. First of all comes {"event": "ready"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shards import Dataset, Row, open_dataset
from shards.errors import ShardError, UserError
from shards.job import Emit

from .config import ScoreJob
from .data import collate
from .losses import Targets, forward_kl, hybrid
from .model.files import load_model
from .ranks import device
from .scores import Predictor, student_predictor

ROWS_PER_BATCH = 8


def run(job: ScoreJob, emit: Emit) -> None:
    """Answer until standard input ends.

    Raises:
        UserError: no student there, or one for another vocabulary.
    """
    datasets = {name: open_dataset(folder) for name, folder in job.datasets.items()}
    student = load_model(job.model)
    for name, dataset in datasets.items():
        if dataset.header.vocab_size != student.vocab_size:
            raise UserError(
                f"{job.model}: made for {student.vocab_size} tokens, {job.datasets[name]} has "
                f"{dataset.header.vocab_size}; give the student that was trained on these shards"
            )
    emit({"event": "ready"})
    answer(sys.stdin, student_predictor(student.to(device()).eval()), datasets, job.top, emit)


def answer(lines: Iterable[str], predict: Predictor, datasets: dict[str, Dataset], top: int, emit: Emit) -> None:
    """One event for every line; the questions are `{"data", "rows", "detail"}`."""
    for line in lines:
        try:
            question = json.loads(line)
            name, indices = question["data"], [int(r) for r in question["rows"]]
            rows = datasets[name].read(indices)
        except (ValueError, KeyError, TypeError, IndexError, ShardError) as e:
            emit({"event": "refused", "text": str(e) if isinstance(e, ShardError) else f"{line.strip()}: {e!r}"})
            continue
        said = score_rows(predict, rows, top if question.get("detail") else 0)
        emit({"event": "scores", "data": name, "rows": [{"row": r} | s for r, s in zip(indices, said, strict=True)]})


@torch.no_grad()
def score_rows(predict: Predictor, rows: Sequence[Row], top: int) -> list[dict[str, Any]]:
    """The lists of the module's docstring for each row; `top` 0: without the detail.

    `kl` is forward KL on the events {head ids, rest}, never above the full divergence; where nothing is stored but
    draws, the unbiased estimate, which may be negative.
    """
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        some = rows[start : start + ROWS_PER_BATCH]
        tokens, targets = collate(some)
        tokens, targets = tokens.to(device()), targets.to(device())
        parts: list[dict[str, list[Any]]] = []
        done = 0
        for logprobs in predict(tokens, targets.index):
            parts.append(_score(logprobs, targets.part(slice(done, done + len(logprobs))), top))
            done += len(logprobs)
        whole = {name: [x for part in parts for x in part[name]] for name in parts[0]}
        first = 0
        for row in some:
            found.append({name: values[first : first + row.num_scored] for name, values in whole.items()})
            first += row.num_scored
    return found


def _score(logprobs: Tensor, targets: Targets, top: int) -> dict[str, list[Any]]:
    """Lists over the n positions of `logprobs` float32 [n, V]."""
    picked = logprobs.gather(1, targets.ids)
    nothing = torch.zeros_like(picked[:, 0])  # log-probabilities are normalised: their logsumexp is 0
    on_events = forward_kl(picked, nothing, targets).clamp_min(0.0)
    kl = torch.where(targets.head_mask.any(1), on_events, hybrid(picked, nothing, targets))
    label = logprobs.gather(1, targets.labels[:, None])[:, 0]
    entropy = -torch.xlogy(logprobs.exp(), logprobs.exp()).sum(1)
    lists: dict[str, list[Any]] = {"kl": _short(kl), "label_logprob": _short(label), "entropy": _short(entropy)}
    if top:
        best = logprobs.topk(min(top, logprobs.shape[1]), dim=1)
        sizes = targets.mask.sum(1).tolist()
        lists["top_ids"] = best.indices.tolist()
        lists["top_logprobs"] = [_short(row) for row in best.values]
        lists["support_logprobs"] = [_short(row[:n]) for row, n in zip(picked, sizes, strict=True)]
    return lists


def _short(values: Tensor) -> list[float]:
    """Five decimals: what a reader can see."""
    return [round(x, 5) for x in values.double().cpu().tolist()]
