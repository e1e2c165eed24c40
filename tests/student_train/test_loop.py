"""What a training start checks, keeps and writes, without an engine. Whole runs are in test_ranks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards import ShardError, open_dataset
from shards.errors import UserError
from shards.job import silent
from student_train.__main__ import read_job
from student_train.build import build_student
from student_train.config import CellConfig, EncoderConfig, StudentConfig, TrainConfig, TrainJob
from student_train.data import Slice, Wanted, load_step
from student_train.fit import check_same_teacher, open_captures
from student_train.loop import total_steps
from student_train.metrics import MetricsLog
from student_train.progress import Progress
from student_train.trainer import Trainer

TINY = TrainConfig(
    student=StudentConfig(
        hidden_size=16, encoder=EncoderConfig(layers=1, heads=2, window=8), blocks=1, cell=CellConfig(units=16)
    )
)


def test_steps_win_over_epochs():
    assert total_steps(TrainConfig(epochs=3), num_rows=45, global_batch=8) == 18
    assert total_steps(TrainConfig(epochs=3, steps=7), num_rows=45, global_batch=8) == 7


def test_the_metrics_file_forgets_what_the_checkpoint_had_not_seen(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write({"step": 1, "loss": 0.1 + 0.2})
    kept = log.sync()
    log.write({"step": 2, "loss": 1.0})
    log.close()
    with path.open("ab") as f:
        f.write(b'{"step": 3, "lo')
    log = MetricsLog(path, kept)
    log.write({"step": 2, "loss": 2.0})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.30000000000000004},
        {"step": 2, "loss": 2.0},
    ]


def test_a_fresh_student_is_a_function_of_the_seed_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, two = build_student(TINY, 37, 40), build_student(TINY, 37, 40)
    other = build_student(TINY.model_copy(update={"seed": 1}), 37, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head_weight, other.head_weight)


def test_the_unigram_bias_fills_the_real_rows_only():
    bias = np.linspace(-3, -1, 37).astype(np.float32)
    student = build_student(TINY, 37, 40, bias)
    assert student.head_bias.tolist() == [*bias.tolist(), 0.0, 0.0, 0.0]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(shards, tmp_path):
    job = TrainJob(train=TINY, shards=shards, output=tmp_path, digest="d")
    data = open_dataset(shards / "train")
    trainer = Trainer(job, silent, None, data, Slice(0, 8, 2, 0, 1), 5, Wanted())
    batch = load_step(data, trainer.ours, 3)
    trainer._refuse_nonfinite(batch, "loss", 1.0)
    with pytest.raises(UserError, match=r"loss of step 4: nan; the batch is in .*nonfinite-step4-rank0.pt"):
        trainer._refuse_nonfinite(batch, "loss", float("nan"))
    saved = torch.load(tmp_path / "nonfinite-step4-rank0.pt", weights_only=False)
    assert saved["rows"] == batch.rows
    assert torch.equal(saved["micro"][0][0].input_ids, batch.micro[0][0].input_ids)


def test_shards_of_another_tokenizer_or_vocabulary_are_refused(shards, tmp_path):
    header = open_captures(shards, "train").header
    check_same_teacher(header, open_captures(shards, "val").header, tmp_path)
    with pytest.raises(ShardError, match="vocab_size 36, the training shards have 37"):
        check_same_teacher(header, replace(header, vocab_size=36), tmp_path)
    other = replace(header, fingerprints=header.fingerprints | {"tokenizer": "other"})
    with pytest.raises(ShardError, match="another tokenizer than the training shards"):
        check_same_teacher(header, other, tmp_path)


def test_progress_is_shown_a_few_times_a_second_and_at_the_end():
    events = []
    progress = Progress(events.append, "train", "steps")
    for done in range(1, 51):
        progress.show(done, 50, "fast")
    assert [e["done"] for e in events] == [1, 50]
    assert events[-1] == {
        "event": "progress", "stage": "train", "done": 50, "total": 50, "unit": "steps", "text": "fast"
    }  # fmt: skip


def test_a_job_file_is_checked_by_name(tmp_path):
    with pytest.raises(UserError, match="no such job file"):
        read_job(tmp_path / "job.json")
    job = {"stage": "train", "train": {"bacth_size": 2}, "shards": "s", "output": "o", "digest": "d"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=r"train.train.bacth_size: Extra inputs are not permitted"):
        read_job(tmp_path / "job.json")
