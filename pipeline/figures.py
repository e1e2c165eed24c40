"""Reads what training and evaluation left (metrics.jsonl, eval.json), for the end screen and the report.

The one place that knows the names in those files; it computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import read_json

from .stages import Plan, Student

BASELINES = ("untrained", "unigram", "teacher")
COLUMNS = {
    "kl_exact": "KL to the teacher, exact (probe)",
    "kl_estimate": "KL to the teacher, estimated",
    "cross_entropy": "cross-entropy",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "top1_agreement": "same top token",
}
"""What is shown of an evaluation, in this order, as far as it is there."""

Likely = list[tuple[str, float]]
"""Tokens with their probabilities, most likely first."""


@dataclass(frozen=True)
class Sample:
    """One position of real text with both distributions."""

    context: str
    label: str
    teacher: Likely
    student: Likely


@dataclass(frozen=True)
class Figures:
    """What is known of one student."""

    name: str
    """The variant, or the run."""
    contenders: dict[str, dict[str, float]]
    """`student` and BASELINES: figure -> value."""
    samples: list[Sample]
    prompt: str
    generated: str
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl, in step order."""
    provenance: dict[str, Any]


def figures_of(plan: Plan) -> list[Figures]:
    """One for each student of the run, evaluated or not."""
    return [_figures(student, name or plan.config.name) for name, student in plan.students.items()]


def standings(figures: Sequence[Figures]) -> list[tuple[str, bool, dict[str, float]]]:
    """(label, is a student, its figures): every student, then the baselines once (variants share shards and seed)."""
    rows = []
    for f in figures:
        if "student" in f.contenders:
            rows.append((f.name if len(figures) > 1 else "student", True, f.contenders["student"]))
    rows += [(name, False, figures[0].contenders[name]) for name in BASELINES if name in figures[0].contenders]
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a line torn by a kill and steps repeated after a resume count once, the last one."""
    by_step: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            by_step[int(entry["step"])] = entry
    return [by_step[step] for step in sorted(by_step)]


def _figures(student: Student, name: str) -> Figures:
    evaluation = _json(student.folder / "eval" / "eval.json")
    generated = evaluation.get("generated") or {}
    return Figures(
        name=name,
        contenders={c: _numbers(evaluation[c]) for c in ("student", *BASELINES) if c in evaluation},
        samples=[_sample(s) for s in evaluation.get("samples", [])],
        prompt=str(generated.get("prompt", "")),
        generated=str(generated.get("text", "")),
        metrics=read_metrics(student.folder / "train" / "metrics.jsonl"),
        provenance=_json(student.folder / "train" / "provenance.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float)}


def _sample(value: dict[str, Any]) -> Sample:
    return Sample(str(value["context"]), str(value["label"]), _likely(value["teacher"]), _likely(value["student"]))


def _likely(pairs: list[Any]) -> Likely:
    return [(str(token), float(p)) for token, p in pairs]
