"""The stage `dump`: prepared rows -> captures, shard by shard, and what belongs to the teacher beside them.

Not a teacher and not the format: it orders them. The unit of work, of resume and of loss when killed is one shard; its
batches depend on the corpus and the config alone, so a shard written again has the same bytes on a deterministic
device with the same number of threads.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards import Dataset, DatasetWriter, Header, Row, open_dataset, plan_shards, write_probe
from shards.errors import UserError
from shards.job import Emit
from shards.manifest import load_manifest
from shards.stage import claim, is_done

from .config import DumpJob, HFTeacher
from .extraction import ExtractionSpec
from .heartbeat import heartbeat
from .packaged import teacher_folder
from .philox import Key, key_of
from .progress import DumpProgress
from .teachers import build
from .teachers.base import NotFiniteError, Teacher
from .tokenizers import load_tokenizer

SPLITS = ("train", "val")
PROBE = Path("teacher", "probe.arrow")


def run(job: DumpJob, emit: Emit) -> None:
    """Do the job: `output/{train,val}`, `output/teacher/{probe.arrow,tokenizer}`, and the stage marker last.

    Raises:
        UserError: a corpus, teacher or setting that cannot be used, or logits that are not finite.
    """
    if is_done(job.output, "dump", job.digest):
        emit({"event": "note", "text": f"{job.output}: already dumped with these settings"})
        return
    corpus = {split: _corpus(job.corpus / split) for split in SPLITS}
    header = corpus["train"].header
    spec = ExtractionSpec.of(job.dump, header.vocab_size)
    _refuse_another_tokenizer(job, emit)
    with claim(job.output, "dump", job.digest) as stage:
        _fix_arithmetic(job.dump.threads)
        started = time.monotonic()
        teacher = build(job.teacher, spec, batch_tokens=job.dump.batch_tokens, emit=emit)
        if teacher.max_length is not None and header.max_length > teacher.max_length:
            raise UserError(
                f"prepare.max_length: rows of {header.max_length} tokens, but the teacher was built for "
                f"{teacher.max_length}; prepare shorter rows"
            )
        with DumpProgress(emit, sum(dataset.num_tokens for dataset in corpus.values())) as progress:
            for split in SPLITS:
                _dump_split(job, split, corpus[split], teacher, progress)
        _dump_probe(job, corpus["val"], teacher, emit)
        shutil.copytree(job.corpus / "tokenizer", job.output / "teacher" / "tokenizer", dirs_exist_ok=True)
        with heartbeat(emit, "dump", "reading the shards back"):
            summary = _summary(job.output)
        summary["tokens_per_second"] = round(progress.tokens_per_second, 1)
        summary["seconds"] = round(time.monotonic() - started, 1)
        stage.finish(summary)


def _corpus(folder: Path) -> Dataset:
    dataset = open_dataset(folder)
    if dataset.header.kind != "rows":
        raise UserError(f"{folder}: holds {dataset.header.kind}, not rows; give the folder that `prepare` wrote")
    return dataset


def _refuse_another_tokenizer(job: DumpJob, emit: Emit) -> None:
    """Ids of another tokenizer would be scored without complaint, and every number would be wrong."""
    folder = job.corpus / "tokenizer"
    if not folder.is_dir():
        raise UserError(f"{folder}: missing; prepare the corpus again")
    name = str(teacher_folder(job.teacher, emit))
    if isinstance(job.teacher, HFTeacher) and job.teacher.tokenizer:
        name = job.teacher.tokenizer
    corpus = load_tokenizer(str(folder), emit)
    try:
        own = load_tokenizer(name, emit)
    except UserError:
        emit({"event": "note", "text": f"{name}: has no tokenizer of its own; trusting the corpus' tokenizer"})
        return
    if own.fingerprint != corpus.fingerprint and own.hf.get_vocab() != corpus.hf.get_vocab():
        raise UserError(
            f"{job.corpus}: was tokenised with another vocabulary ({corpus.vocab_size} tokens) than that of the "
            f"teacher {name} ({own.vocab_size} tokens); prepare it with the teacher's own tokenizer"
        )


def _fix_arithmetic(threads: int | None) -> None:
    """The same sums in the same order in every run."""
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A GPU has no deterministic cumulative sum; there identity is not promised, and a warning would help nobody.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # A debugging aid that costs a pass over every new tensor. (The module is made at run time: mypy cannot see it.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _dump_split(job: DumpJob, split: str, corpus: Dataset, teacher: Teacher, progress: DumpProgress) -> None:
    header = _captures_header(job, corpus.header, teacher)
    plan = plan_shards(header.num_rows, job.dump.rows_per_shard)
    writer = DatasetWriter(job.output / split, header, plan)
    missing = writer.missing()
    if len(missing) < len(plan):
        progress.resume(split, len(plan) - len(missing), len(plan), load_manifest(job.output / split).num_tokens)
    key = key_of(corpus.header.fingerprints["corpus"], job.dump.seed)
    for shard in missing:
        progress.place = f"{split}, shard {shard.index + 1} of {len(plan)}"
        rows = corpus.rows(shard.first_row, shard.first_row + shard.num_rows)
        writer.write(shard, _captured(split, rows, teacher, key, job.dump.batch_tokens, progress))
    writer.close()


def _captures_header(job: DumpJob, corpus: Header, teacher: Teacher) -> Header:
    config = job.dump
    optional = [name for name in ("tail_logprobs", "logsumexp") if getattr(config, name)]
    return dataclasses.replace(
        corpus,
        kind="captures",
        encoding=config.encoding,
        vocab_rows=teacher.vocab_rows,
        head_size=config.head_size,
        head_mass=config.head_mass,
        must_keep=config.must_keep,
        tail=config.tail.model_dump(),
        temperatures=config.temperatures,
        seed=config.seed,
        threads=teacher.threads,
        optional_columns=tuple(optional),
        fingerprints=corpus.fingerprints | {"teacher": teacher.fingerprint()},
    )


def _captured(
    split: str, rows: Iterator[Row], teacher: Teacher, key: Key, batch_tokens: int, progress: DumpProgress
) -> Iterator[Row]:
    """The rows with their captures, one batch in memory at a time."""
    for batch in _batches(rows, batch_tokens):
        try:
            captures = teacher.score(batch, key)
        except NotFiniteError as e:
            raise UserError(
                f"{split} row {e.row_id}, position {e.position}: the teacher's logits are not finite; check its "
                "weights, or choose dump.teacher.dtype float32 or bfloat16"
            ) from None
        for row, capture in zip(batch, captures, strict=True):
            yield dataclasses.replace(row, capture=capture)
        progress.add(sum(row.num_tokens for row in batch))


def _batches(rows: Iterator[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows of at most `batch_tokens` tokens together, at least one row."""
    batch: list[Row] = []
    tokens = 0
    for row in rows:
        if batch and tokens + row.num_tokens > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += row.num_tokens
    if batch:
        yield batch


def _dump_probe(job: DumpJob, val: Dataset, teacher: Teacher, emit: Emit) -> None:
    """Full distributions at scored positions spread evenly over the validation split."""
    path = job.output / PROBE
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    positions = min(job.dump.probe_positions, val.num_scored)
    with heartbeat(emit, "dump", f"full distributions of {positions} validation positions"):
        write_probe(path, _probe_rows(val, teacher, positions), teacher.vocab_size)


def _probe_rows(val: Dataset, teacher: Teacher, wanted: int) -> Iterator[tuple[int, int, NDArray[np.float16]]]:
    chosen = (np.arange(wanted) + 0.5) * val.num_scored // max(1, wanted)  # among all scored positions, in row order
    before = 0
    for index, row in enumerate(val.rows()):
        here = chosen[(chosen >= before) & (chosen < before + row.num_scored)].astype(np.int64) - before
        before += row.num_scored
        if len(here):
            positions = row.scored_positions()[here]
            for position, logprobs in zip(positions, teacher.logprobs(row, positions), strict=True):
                yield index, int(position), logprobs.astype(np.float16)


def _summary(output: Path) -> dict[str, Any]:
    """Figures of the finished dump, counted from the files, so that a resumed one states the same."""
    tokens = scored = size = heads = draws = 0
    rest = dead = 0.0
    for split in SPLITS:
        dataset = open_dataset(output / split)
        tokens += dataset.num_tokens
        scored += dataset.num_scored
        size += sum(shard.bytes for shard in dataset.manifest.shards)
        dead += dataset.manifest.dead_row_mass * dataset.num_scored
        for row in dataset.rows():
            assert row.capture is not None
            heads += len(row.capture.head_ids)
            draws += int(row.capture.tail_counts.sum())
            rest += float(row.capture.rest_mass[:, 0].sum(dtype=np.float64))
    each = max(1, scored)
    return {
        "tokens": tokens,
        "scored": scored,
        "bytes": size,
        "bytes_per_scored": round(size / each, 2),
        "mean_rest_mass": round(rest / each, 5),
        "mean_head_length": round(heads / each, 3),
        "mean_draws": round(draws / each, 3),
        "mean_dead_row_mass": dead / each,
    }
