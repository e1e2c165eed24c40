"""Something to look at: positions of real text with both distributions, and one line that the student writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards import Dataset, Probe, Row

from .config import EvalConfig
from .data import collate
from .model.lm import Student
from .ranks import device
from .scores import TOP, Predictor

CONTEXT_TOKENS = 32
LEAST_CONTEXT = 8
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def sample_positions(
    predict: Predictor, val: Dataset, probe: Probe | None, tokenizer_folder: Path, count: int
) -> list[dict[str, Any]]:
    """`count` validation positions, evenly spread: context, label, and the most likely tokens of teacher and student.

    Labels that are a part of a character are passed over where there are others.
    Taken from the probe, whose distributions are full; without one, from captures (the stored head).
    """
    if count == 0:
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    places = _probe_places(probe) if probe is not None and len(probe.position) else _capture_places(val)
    readable = [(r, i, e) for r, i, e in places if _is_readable(val[r], i, tokenizer)]
    if len(readable) < count:
        readable = places
    count = min(count, len(readable))
    chosen = [int((k + 0.5) * len(readable) / count) for k in range(count)]
    samples = []
    for r, i, entry in (readable[k] for k in chosen):
        row = val[r]
        teacher = _of_probe(probe, entry) if probe is not None and len(probe.position) else _of_capture(row, entry)
        samples.append(_sample(predict, tokenizer, row, i, teacher))
    return samples


def _probe_places(probe: Probe) -> list[tuple[int, int, int]]:
    """(row, position, index into the probe)."""
    return [(int(r), int(i), e) for e, (r, i) in enumerate(zip(probe.val_row, probe.position, strict=True))]


def _capture_places(val: Dataset, rows: int = 200) -> list[tuple[int, int, int]]:
    """(row, position, index into the row's capture) of the first rows."""
    return [(r, int(i), n) for r, row in enumerate(val.rows(0, rows)) for n, i in enumerate(row.scored_positions())]


def _is_readable(row: Row, position: int, tokenizer: Any) -> bool:
    """Enough context before the label, and a label that is whole characters (byte-level tokens may be parts of one)."""
    enough = position - _segment_start(row, position) + 1 >= LEAST_CONTEXT
    return enough and _BROKEN not in tokenizer.decode([int(row.input_ids[position + 1])])


def _segment_start(row: Row, position: int) -> int:
    return int(row.segment_starts[np.searchsorted(row.segment_starts, position, side="right") - 1])


def _of_probe(probe: Probe, entry: int) -> list[tuple[int, float]]:
    """The teacher's most likely ids with their probabilities."""
    logprobs = torch.log_softmax(torch.from_numpy(probe.logprobs[entry]).float(), 0)
    values, ids = logprobs.topk(min(TOP, len(logprobs)))
    return list(zip(ids.tolist(), values.exp().tolist(), strict=True))


def _of_capture(row: Row, n: int) -> list[tuple[int, float]]:
    capture = row.capture
    assert capture is not None
    start = int(capture.head_lengths[:n].sum(dtype=np.int64))
    stop = start + min(TOP, int(capture.head_lengths[n]))
    return [
        (int(t), float(np.exp(p)))
        for t, p in zip(capture.head_ids[start:stop], capture.head_logprobs[start:stop], strict=True)
    ]


@torch.no_grad()
def _sample(
    predict: Predictor, tokenizer: Any, row: Row, position: int, teacher: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    batch, _ = collate([row])
    (logprobs,) = predict(batch.to(device()), torch.tensor([position], device=device()))
    values, ids = logprobs[0].topk(TOP)
    start = max(_segment_start(row, position), position + 1 - CONTEXT_TOKENS)
    student = zip(ids.tolist(), values.exp().tolist(), strict=True)
    return {
        "context": tokenizer.decode(row.input_ids[start : position + 1].tolist()).lstrip(_BROKEN),
        "label": tokenizer.decode([int(row.input_ids[position + 1])]),
        "teacher": [[tokenizer.decode([i]), p] for i, p in teacher],
        "student": [[tokenizer.decode([i]), p] for i, p in student],
    }


def generated_line(student: Student, tokenizer_folder: Path, config: EvalConfig) -> dict[str, str] | None:
    """What the student writes after `config.prompt`; None when no new tokens are asked for."""
    if config.max_new_tokens == 0:
        return None
    from .generate import generate_text

    return {
        "prompt": config.prompt,
        "text": generate_text(student, tokenizer_folder, config.prompt, config.max_new_tokens),
    }
