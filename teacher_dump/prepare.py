"""The stage `prepare`: corpus files -> two datasets of packed rows, and the tokenizer that made them.

Not a reader, renderer or packer: those are in `corpus/`; this module orders them. Nothing here depends on time or
on the machine, so the same job gives the same bytes. An interrupted run leaves an unfinished folder, and the next
one begins it anew: preparing is minutes where dumping is hours.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import DatasetWriter, Header, Row, plan_shards
from shards.errors import UserError
from shards.job import Emit
from shards.stage import claim, is_done

from .config import HFTeacher, PrepareConfig, PrepareJob
from .corpus.formats import check_files, read_records
from .corpus.pack import assemble, pack
from .corpus.pieces import Piece, cut_chat, cut_document
from .corpus.records import Record, TextRecord
from .corpus.render import render_chat, render_text
from .corpus.split import Split, Survey, assign, survey
from .corpus.spool import Spool, SpooledPieces
from .packaged import teacher_folder
from .tokenizers import CorpusTokenizer, load_tokenizer
from .vocabulary import vocabulary_rows

ROWS_PER_SHARD = 8_192
SPOOL = ".spool.tmp"


def run(job: PrepareJob, emit: Emit) -> None:
    """Do the job: `output/{train,val,tokenizer}`, and the stage marker last.

    Raises:
        UserError: corpus, tokenizer or sizes that cannot be used; the corpus is judged before a tokenizer is loaded.
    """
    config = job.prepare
    if is_done(job.output, "prepare", job.digest):
        emit({"event": "note", "text": f"{job.output}: already prepared with these settings"})
        return
    check_files(config.input)
    found = survey(config.input, emit)
    split = assign(found, config.train_size, config.val_size, config.seed)
    if split.shrunk:
        emit({"event": "note", "text": _shrunk_note(config, split)})
    tokenizer = _tokenizer(job, emit)
    if found.first_chat and tokenizer.chat_template is None:
        raise UserError(
            f"{found.first_chat}: a conversation, but the tokenizer {tokenizer.name} has no chat template; "
            "use text records or a tokenizer with one"
        )
    vocab_rows = vocabulary_rows(job.teacher, tokenizer, emit)
    with claim(job.output, "prepare", job.digest) as stage:
        for leftover in ("train", "val", "tokenizer", SPOOL):
            shutil.rmtree(job.output / leftover, ignore_errors=True)
        try:
            pieces, dropped = _spool(config, split, tokenizer, job.output / SPOOL, emit)
            writer = _Writer(config, tokenizer, vocab_rows, pieces, job.output, emit)
            first_train = len(split.val)
            train = writer.choose("train", first_train, first_train + len(split.train))
            val = writer.choose("val", 0, first_train)  # both are judged before either is written
            counts = {
                "train": writer.write("train", train, dropped["train"]),
                "val": writer.write("val", val, dropped["val"]),
            }
            tokenizer.hf.save_pretrained(job.output / "tokenizer")
        finally:
            shutil.rmtree(job.output / SPOOL, ignore_errors=True)
        stage.finish({**counts, "dropped": _dropped(found, split, dropped)})


def _tokenizer(job: PrepareJob, emit: Emit) -> CorpusTokenizer:
    """The configured tokenizer, else the teacher's own."""
    if job.prepare.tokenizer:
        return load_tokenizer(job.prepare.tokenizer, emit)
    if isinstance(job.teacher, HFTeacher):
        name = job.teacher.tokenizer or str(teacher_folder(job.teacher, emit))
        return load_tokenizer(name, emit, revision=None if job.teacher.tokenizer else job.teacher.revision)
    return load_tokenizer(job.teacher.name, emit)


def _shrunk_note(config: PrepareConfig, split: Split) -> str:
    have = len(split.train) + len(split.val)
    return (
        f"the corpus holds {have:,} distinct samples, fewer than train_size + val_size = "
        f"{config.train_size + config.val_size:,}; shared out in that proportion: "
        f"{len(split.train):,} for training, {len(split.val):,} held out"
    )


def _dropped(found: Survey, split: Split, dropped: dict[str, Counter[str]]) -> dict[str, int]:
    total = found.dropped + dropped["train"] + dropped["val"]
    if split.duplicates:
        total["duplicate"] = split.duplicates
    return dict(sorted(total.items()))


def _spool(
    config: PrepareConfig, split: Split, tokenizer: CorpusTokenizer, folder: Path, emit: Emit
) -> tuple[SpooledPieces, dict[str, Counter[str]]]:
    """Render the chosen records; validation samples take the first places in packing order."""
    chosen = np.concatenate([split.val, split.train])
    place_of = np.full(int(chosen.max()) + 1, -1, dtype=np.int64)
    place_of[chosen] = np.arange(len(chosen))
    dropped: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
    spool = Spool(folder)
    done, told = 0, time.monotonic()
    try:
        for ordinal, record in enumerate(_records(config)):
            if ordinal >= len(place_of):
                break
            place = int(place_of[ordinal])
            if place < 0:
                continue
            for piece in _pieces(record, tokenizer, config):
                if isinstance(piece, str):
                    dropped["val" if place < len(split.val) else "train"][piece] += 1
                else:
                    spool.append(piece, place=place, document=ordinal, source=record.source)
            done += 1
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                emit(_progress(done, len(chosen), "samples", "tokenising"))
        emit(_progress(done, len(chosen), "samples", "tokenising"))
        return spool.finish(), dropped
    finally:
        spool.close()


def _records(config: PrepareConfig) -> Iterator[Record]:
    for path in config.input:
        yield from read_records(path)


def _pieces(record: Record, tokenizer: CorpusTokenizer, config: PrepareConfig) -> list[Piece | str]:
    """The record's pieces, or in their stead the reason why one is left out."""
    if isinstance(record, TextRecord):
        return [*cut_document(render_text(tokenizer, record), tokenizer.prefix, config.max_length)] or ["empty"]
    samples = render_chat(tokenizer, record, enable_thinking=config.enable_thinking)
    return [cut_chat(sample, config.max_length) or "truncated_to_no_response" for sample in samples]


@dataclass(frozen=True)
class _Writer:
    """Packs and writes one split after the other."""

    config: PrepareConfig
    tokenizer: CorpusTokenizer
    vocab_rows: int
    pieces: SpooledPieces
    output: Path
    emit: Emit

    def choose(self, split: str, first: int, stop: int) -> NDArray[np.int64]:
        """Indices of the pieces of the samples at places [first, stop), in packing order and within the token cap.

        Raises:
            UserError: there were samples and no piece is left of them.
        """
        chosen = self.pieces.between(first, stop)
        if split == "train" and self.config.max_tokens is not None:
            chosen = chosen[np.cumsum(self.pieces.lengths[chosen]) <= self.config.max_tokens]
        if stop > first and len(chosen) == 0:
            raise UserError(
                f"prepare.max_length: nothing is left of the {stop - first} {split} samples (max_length "
                f"{self.config.max_length}, max_tokens {self.config.max_tokens}); raise them"
            )
        return chosen

    def write(self, split: str, chosen: NDArray[np.int64], dropped: Counter[str]) -> dict[str, Any]:
        """Pack these pieces and write them as the dataset `split`; returns its counts."""
        num_rows, fingerprint = self._fingerprint(chosen)
        counts = {
            "split": split,
            "samples": len(np.unique(self.pieces.places[chosen])),
            "tokens": int(self.pieces.lengths[chosen].sum()),
            "dropped": dict(sorted(dropped.items())),
            "sources": self.pieces.count_sources(chosen),
        }
        header = Header(
            kind="rows",
            num_rows=num_rows,
            vocab_size=self.tokenizer.vocab_size,
            vocab_rows=self.vocab_rows,
            max_length=self.config.max_length,
            seed=self.config.seed,
            fingerprints={
                "tokenizer": self.tokenizer.fingerprint,
                "chat_template": self.tokenizer.template_fingerprint,
                "corpus": fingerprint,
            },
            extra=counts,
        )
        plan = plan_shards(num_rows, ROWS_PER_SHARD)
        writer = DatasetWriter(self.output / split, header, plan)
        rows = self._rows(chosen)
        for shard in writer.missing():
            writer.write(shard, (next(rows) for _ in range(shard.num_rows)))
            self.emit(_progress(shard.first_row + shard.num_rows, num_rows, "rows", f"writing {split}"))
        manifest = writer.close()
        return {
            "samples": counts["samples"],
            "rows": num_rows,
            "tokens": counts["tokens"],
            "scored": manifest.num_scored,
        }

    def _rows(self, chosen: NDArray[np.int64]) -> Iterator[Row]:
        lengths, sources = self.pieces.lengths[chosen].tolist(), self.pieces.sources[chosen].tolist()
        packed = pack(zip(chosen.tolist(), lengths, sources, strict=True), self.config.max_length)
        for row_id, indices in enumerate(packed):
            yield assemble(
                row_id,
                [self.pieces[i] for i in indices],
                source=self.pieces.source_names[self.pieces.sources[indices[0]]],
                documents=self.pieces.documents[indices].tolist(),
                byte_lengths=self.tokenizer.byte_lengths,
                with_runs=self.config.prompt_runs,
            )

    def _fingerprint(self, chosen: NDArray[np.int64]) -> tuple[int, str]:
        """Number of rows and the sha256 of what they hold: the corpus fingerprint of the split."""
        hasher, num_rows = hashlib.sha256(), 0
        for row in self._rows(chosen):
            num_rows += 1
            for values in (row.input_ids, row.segment_starts, row.prompt_runs, row.scored):
                hasher.update(len(values).to_bytes(8, "little") + values.tobytes())
        return num_rows, hasher.hexdigest()


def _progress(done: int, total: int, unit: str, text: str) -> dict[str, Any]:
    return {"event": "progress", "stage": "prepare", "done": done, "total": total, "unit": unit, "text": text}
