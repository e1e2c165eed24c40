"""The dump stage end to end on a tiny random teacher: what is written, and that a killed run loses one shard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shards import DatasetWriter, Header, Row, convert, open_dataset, plan_shards, read_probe, verify
from shards.errors import ShardError, UserError
from shards.job import silent
from shards.stage import read_marker
from teacher_dump.config import DumpConfig, DumpJob, HFTeacher
from teacher_dump.dump import run
from tests.tiny_teacher import make_tiny_teacher, make_tiny_tokenizer

VOCAB = 384
ROWS = {"train": 20, "val": 6}


def random_rows(count: int, seed: int) -> list[Row]:
    """Rows of two or three segments; the first third of every segment is prompt."""
    generator = np.random.default_rng(seed)
    rows = []
    for row_id in range(count):
        lengths = generator.integers(3, 14, generator.integers(2, 4))
        starts = np.cumsum([0, *lengths[:-1]]).astype(np.int32)
        scored = np.ones(int(lengths.sum()) - 1, dtype=np.bool_)
        scored[starts[1:] - 1] = False
        for start, length in zip(starts, lengths, strict=True):
            scored[start : start + length // 3] = False
        tokens = generator.integers(3, VOCAB, int(lengths.sum())).astype(np.int32)
        rows.append(
            Row(
                row_id,
                tokens,
                starts,
                np.zeros((0, 2), np.int32),
                scored,
                source="random",
                document_ids=np.arange(len(starts)),
                continued=np.zeros(len(starts), np.bool_),
            )
        )
    return rows


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in ROWS.items():
        header = Header(
            kind="rows", num_rows=count, vocab_size=VOCAB, vocab_rows=400, max_length=48,
            fingerprints={"tokenizer": "t", "chat_template": "", "corpus": f"random {split}"}, extra={"split": split},
        )  # fmt: skip
        plan = plan_shards(count, 100)
        writer = DatasetWriter(folder / split, header, plan)
        writer.write(plan[0], random_rows(count, len(split)))
        writer.close()
    make_tiny_tokenizer(folder / "tokenizer")
    return folder


def job_of(teacher: Path, corpus: Path, output: Path, **dump: Any) -> DumpJob:
    settings = {"rows_per_shard": 4, "batch_tokens": 64, "probe_positions": 10, "threads": 1} | dump
    return DumpJob(
        teacher=HFTeacher(model=str(teacher)), dump=DumpConfig(**settings), corpus=corpus, output=output, digest="d1"
    )


@pytest.fixture(scope="module")
def dumped(teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dump; tests leave it as it is."""
    output = tmp_path_factory.mktemp("dump") / "shards"
    run(job_of(teacher, corpus, output), silent)
    return output


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file of the datasets and the probe."""
    paths = [p for pattern in ("train/*", "val/*", "teacher/probe*") for p in folder.glob(pattern)]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_the_datasets_hold_the_corpus_and_pass_verify(corpus: Path, dumped: Path) -> None:
    for split, count in ROWS.items():
        assert verify(dumped / split).problems == []
        rows, captures = open_dataset(corpus / split), open_dataset(dumped / split)
        assert len(captures) == count
        assert len(captures.manifest.shards) == math.ceil(count / 4)
        for before, after in zip(rows.rows(), captures.rows(), strict=True):
            np.testing.assert_array_equal(before.input_ids, after.input_ids)
            np.testing.assert_array_equal(before.scored, after.scored)
            assert after.capture is not None
            assert after.capture.num_positions == before.num_scored


def test_a_compact_dump_has_the_bytes_that_converting_a_plain_one_gives(
    teacher: Path, corpus: Path, dumped: Path, tmp_path: Path
) -> None:
    run(job_of(teacher, corpus, tmp_path / "compact", encoding="compact"), silent)
    assert verify(tmp_path / "compact" / "train").problems == []
    convert(dumped / "train", tmp_path / "converted", "compact")
    names = sorted(path.name for path in (tmp_path / "compact" / "train").iterdir())
    assert names[-1] == "shard-00004.arrow"
    for name in names:
        assert (tmp_path / "compact" / "train" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()


def test_the_header_says_who_made_it_and_how(teacher: Path, dumped: Path) -> None:
    header = open_dataset(dumped / "train").header
    assert header.fingerprints["teacher"]["file model.safetensors"] == (
        hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
    )
    assert header.fingerprints["corpus"] == "random train"
    assert (header.vocab_size, header.vocab_rows) == (VOCAB, 400)
    assert (header.head_size, header.head_mass, header.tail) == (8, 0.95, {"draws_per_mass": 32.0})
    assert (header.temperatures, header.threads) == ((1.0, 2.0), 1)
    assert 0 < open_dataset(dumped / "train").manifest.dead_row_mass < 1


def test_captures_are_what_the_model_says_on_each_segment(teacher: Path, dumped: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    for row in open_dataset(dumped / "val").rows():
        assert row.capture is not None
        for n, position in enumerate(row.scored_positions()):
            start = row.segment_starts[row.segment_starts <= position].max()
            with torch.inference_mode():
                logits = model(torch.tensor(row.input_ids[start : position + 1].tolist())[None]).logits[0, -1]
            logprobs = logits[:VOCAB].double().log_softmax(-1)
            label = int(row.input_ids[position + 1])
            # stored values keep 12 bits of mantissa
            assert row.capture.label_logprob[n] == pytest.approx(float(logprobs[label]), rel=2.0**-12, abs=1e-4)
            assert row.capture.label_rank[n] == int((logprobs > logprobs[label]).sum())


def test_the_probe_holds_full_distributions_spread_over_the_rows(teacher: Path, dumped: Path) -> None:
    probe = read_probe(dumped / "teacher" / "probe.arrow")
    assert probe.logprobs.shape == (10, VOCAB)
    assert len(set(zip(probe.val_row.tolist(), probe.position.tolist(), strict=True))) == 10
    assert len(set(probe.val_row.tolist())) == ROWS["val"]
    np.testing.assert_allclose(np.exp(probe.logprobs.astype(np.float64)).sum(axis=1), 1.0, atol=2e-3)
    rows = open_dataset(dumped / "val")
    for val_row, position, logprobs in zip(probe.val_row, probe.position, probe.logprobs, strict=True):
        row = rows[int(val_row)]
        assert row.scored[position]
        assert row.capture is not None
        n = int(row.scored[:position].sum())
        label = int(row.input_ids[position + 1])
        assert float(logprobs[label]) == pytest.approx(float(row.capture.label_logprob[n]), rel=2e-3)


def test_the_marker_is_done_with_figures_counted_from_the_files(dumped: Path) -> None:
    marker = read_marker(dumped)
    assert marker is not None
    assert (marker.stage, marker.digest, marker.done) == ("dump", "d1", True)
    captures = [row.capture for split in ROWS for row in open_dataset(dumped / split).rows()]
    positions = sum(c.num_positions for c in captures if c)
    files = sum(p.stat().st_size for split in ROWS for p in (dumped / split).glob("*.arrow"))
    assert marker.summary["scored"] == positions
    assert marker.summary["bytes"] == files
    assert marker.summary["bytes_per_scored"] == pytest.approx(files / positions, abs=0.01)
    assert marker.summary["mean_head_length"] == pytest.approx(
        sum(len(c.head_ids) for c in captures if c) / positions, abs=1e-3
    )
    rests = np.concatenate([c.rest_mass[:, 0] for c in captures if c])
    assert marker.summary["mean_rest_mass"] == pytest.approx(rests.mean(), abs=1e-4)
    assert marker.summary["tokens_per_second"] > 0


def test_the_corpus_tokenizer_goes_along(corpus: Path, dumped: Path) -> None:
    copied = dumped / "teacher" / "tokenizer" / "tokenizer.json"
    assert copied.read_bytes() == (corpus / "tokenizer" / "tokenizer.json").read_bytes()


def test_a_done_dump_is_left_alone(teacher: Path, corpus: Path, dumped: Path) -> None:
    before = contents(dumped)
    events: list[Any] = []
    run(job_of(teacher, corpus, dumped), events.append)
    assert [event["event"] for event in events] == ["note"]
    assert contents(dumped) == before


def test_a_lost_shard_is_written_again_with_the_same_bytes(
    teacher: Path, corpus: Path, dumped: Path, tmp_path: Path
) -> None:
    resumed = tmp_path / "shards"
    shutil.copytree(dumped, resumed)
    marker = json.loads((resumed / "stage.json").read_text())
    (resumed / "stage.json").write_text(json.dumps(marker | {"done": False}))
    (resumed / "teacher" / "probe.arrow").unlink()
    sorted((resumed / "train").glob("*.arrow"))[2].unlink()
    events: list[Any] = []
    run(job_of(teacher, corpus, resumed), events.append)
    assert contents(resumed) == contents(dumped)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert "train: 4 of 5 shards are whole already, going on" in notes
    last = [event for event in events if event["event"] == "progress" and event["unit"] == "tokens"][-1]
    assert last["done"] == last["total"] == sum(open_dataset(corpus / split).num_tokens for split in ROWS)


def test_batches_do_not_depend_on_what_was_done_before(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """Two dumps that differ in shard size only hold the same rows, up to the last bits of other batches."""
    run(job_of(teacher, corpus, tmp_path / "big", rows_per_shard=100), silent)
    run(job_of(teacher, corpus, tmp_path / "small", rows_per_shard=1), silent)
    big, small = open_dataset(tmp_path / "big" / "train"), open_dataset(tmp_path / "small" / "train")
    for a, b in zip(big.rows(), small.rows(), strict=True):
        assert a.capture is not None
        assert b.capture is not None
        np.testing.assert_array_equal(a.capture.head_ids, b.capture.head_ids)
        np.testing.assert_array_equal(a.capture.tail_ids, b.capture.tail_ids)
        np.testing.assert_array_equal(a.capture.tail_counts, b.capture.tail_counts)


def start(job: DumpJob, path: Path) -> subprocess.Popen[str]:
    path.write_text(job.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "teacher_dump", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_dump_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(
    teacher: Path, corpus: Path, dumped: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    job = job_of(teacher, corpus, output)
    process = start(job, tmp_path / "job.json")
    deadline = time.monotonic() + 60
    while not (output / "train" / "shard-00001.arrow").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    with pytest.raises(ShardError, match="not complete"):
        open_dataset(output / "train")
    again = start(job, tmp_path / "job.json")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    assert "shards are whole already" in out
    assert contents(output) == contents(dumped)


def test_a_resume_under_other_settings_is_refused_by_name(
    teacher: Path, corpus: Path, dumped: Path, tmp_path: Path
) -> None:
    resumed = tmp_path / "shards"
    shutil.copytree(dumped, resumed)
    marker = json.loads((resumed / "stage.json").read_text())
    (resumed / "stage.json").write_text(json.dumps(marker | {"done": False}))
    with pytest.raises(ShardError, match="head_size: 8 against 9"):
        run(job_of(teacher, corpus, resumed, head_size=9), silent)


def test_rows_longer_than_the_teacher_was_built_for_are_refused(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(teacher, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    with pytest.raises(UserError, match="rows of 48 tokens, but the teacher was built for 16"):
        run(job_of(short, corpus, tmp_path / "out"), silent)


def test_a_corpus_of_another_vocabulary_is_refused(corpus: Path, tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "tokenizer", vocab_size=380)
    other = make_tiny_teacher(tmp_path / "teacher", vocab_rows=400, tokenizer_folder=tmp_path / "tokenizer")
    with pytest.raises(
        UserError, match=r"another vocabulary \(384 tokens\) than that of the teacher .* \(380 tokens\)"
    ):
        run(job_of(other, corpus, tmp_path / "out"), silent)


def test_logits_that_are_not_finite_stop_the_dump_at_the_row(
    teacher: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teacher_dump.teachers import hf

    real = hf.load_model
    doomed = int(open_dataset(corpus / "train")[7].input_ids[-2])

    def poisoned(*arguments: Any) -> Any:
        loaded = real(*arguments)

        def body(ids: torch.Tensor) -> torch.Tensor:
            return loaded.body(ids).masked_fill((ids == doomed)[..., None], math.nan)

        return dataclasses.replace(loaded, body=body)

    monkeypatch.setattr(hf, "load_model", poisoned)
    with pytest.raises(UserError, match=r"^train row \d+, position \d+: the teacher's logits are not finite"):
        run(job_of(teacher, corpus, tmp_path / "out"), silent)
    assert not list((tmp_path / "out" / "train").glob("*.tmp"))


def test_an_empty_validation_split_gives_an_empty_probe(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    bare = tmp_path / "corpus"
    shutil.copytree(corpus, bare)
    shutil.rmtree(bare / "val")
    header = dataclasses.replace(open_dataset(corpus / "val").header, num_rows=0)
    DatasetWriter(bare / "val", header, ()).close()
    run(job_of(teacher, bare, tmp_path / "out"), silent)
    assert read_probe(tmp_path / "out" / "teacher" / "probe.arrow").logprobs.shape == (0, VOCAB)
    assert len(open_dataset(tmp_path / "out" / "val")) == 0
