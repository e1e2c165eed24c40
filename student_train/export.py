"""Make a folder that stands alone out of a trained student: weights in one dtype, config, tokenizer, model card."""

from __future__ import annotations

from typing import Any

import torch

from shards.files import read_json, write_atomic
from shards.job import Emit
from shards.stage import claim

from .config import ExportJob
from .model.files import WEIGHTS, load_model, read_config, save_model
from .model.lm import Student

CARD = "README.md"
# Figures of eval.json that a card shows, in this order.
_FIGURES = {
    "kl_exact": "KL to the teacher, exact on the probe (nats)",
    "kl_estimate": "KL to the teacher, estimated on validation (nats)",
    "cross_entropy": "cross-entropy (nats a token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "top1_agreement": "top-1 agreement with the teacher",
}


def run(job: ExportJob, emit: Emit) -> None:
    """Write `job.output` from `job.model` (and `job.evaluation` for the card).

    Raises:
        UserError: no student in `job.model`, or the output is another's.
    """
    with claim(job.output, "export", job.digest) as stage:
        config, student = read_config(job.model), load_model(job.model)
        emit({"event": "progress", "stage": "export", "done": 0, "total": 1, "unit": "files", "text": WEIGHTS})
        save_model(job.output, student, job.model, config.get("meta", {}), getattr(torch, job.export.dtype))
        evaluation = read_json(job.evaluation) if job.evaluation is not None and job.evaluation.exists() else None
        write_atomic(job.output / CARD, model_card(student, config.get("meta", {}), evaluation, job.export.dtype))
        emit({"event": "progress", "stage": "export", "done": 1, "total": 1, "unit": "files", "text": CARD})
        size = sum(p.stat().st_size for p in job.output.iterdir() if p.is_file())
        stage.finish({"parameters": parameters(student), "bytes": size, "dtype": job.export.dtype})


def parameters(student: Student) -> int:
    """All trained numbers; the tied embedding counts once."""
    return sum(p.numel() for p in student.parameters())


def model_card(student: Student, meta: dict[str, Any], evaluation: dict[str, Any] | None, dtype: str) -> str:
    """The README.md of an exported student."""
    c = student.config
    cell, teacher = c.cell, _teacher(meta)
    weights = f"{parameters(student):,} parameters ({dtype})"
    table = student.head_weight.shape
    lines = [
        "# LTC-NCP student",
        "",
        f"A causal language model of {weights}, distilled offline from {teacher}.",
        "",
        "| part | size |",
        "| --- | --- |",
        f"| vocabulary | {student.vocab_size:,} tokens ({table[0]:,} rows), embedding {table[1]} wide, tied |",
        f"| encoder | {c.encoder.layers} attention blocks, {c.encoder.heads} heads, window {c.encoder.window} |",
        f"| decoder | {c.blocks} LTC-NCP blocks of {cell.units} neurons, {cell.synapses} synapses |",
        f"| wiring | seed {cell.wiring.seed}, sparsity {cell.wiring.sparsity}, digest {student.wiring_digest[:8]} |",
        f"| width | {c.hidden_size} |",
        f"| prompt runs | {'trained and used' if c.prompt_runs else 'no: strictly causal'} |",
        "",
        *_figures(evaluation),
        "## Use",
        "",
        "With the MiniCodformer project installed:",
        "",
        "    minicodformer generate --student THIS_FOLDER --input 'It was'",
        "",
        "or in Python:",
        "",
        "    from pathlib import Path",
        "    from student_train.model.files import load_model",
        "    student = load_model(Path('THIS_FOLDER'))",
        "",
        "## Data and licence",
        "",
        f"Teacher: {teacher}. {_data(meta)}",
        "The weights were fitted to that teacher's outputs on that corpus; the terms of both bind whoever passes them",
        "on. The project's code is under the MIT licence.",
        "",
    ]
    return "\n".join(lines)


def _teacher(meta: dict[str, Any]) -> str:
    """The teacher's name as far as the shards' fingerprints tell it."""
    known = meta.get("teacher") or meta.get("fingerprints", {}).get("teacher")
    if isinstance(known, dict):
        known = known.get("name") or known.get("model") or known.get("config")
    return str(known or "the teacher named in its shards")


def _data(meta: dict[str, Any]) -> str:
    corpus = meta.get("fingerprints", {}).get("corpus")
    known = {"corpus fingerprint": corpus, "optimizer steps": meta.get("steps")}
    return "Training data: " + (", ".join(f"{k} {v}" for k, v in known.items() if v) or "not recorded") + "."


def _figures(evaluation: dict[str, Any] | None) -> list[str]:
    student = (evaluation or {}).get("student", {})
    rows = [f"| {text} | {student[key]:.4f} |" for key, text in _FIGURES.items() if student.get(key) is not None]
    if not rows:
        return []
    return ["## Held-out figures", "", "| figure | value |", "| --- | --- |", *rows, ""]
