"""A student learns from compact shards as from plain ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shards import DatasetWriter, open_dataset, plan_shards
from student_train.build import build_student
from student_train.config import CellConfig, EncoderConfig, LossConfig, StudentConfig, TrainConfig
from student_train.data import Slice, load_step
from student_train.module import DistillModule

TINY = TrainConfig(
    student=StudentConfig(
        hidden_size=16, encoder=EncoderConfig(layers=1, heads=2, window=8), blocks=1, cell=CellConfig(units=16)
    )
)
STEPS = 3


@pytest.fixture(scope="module")
def both(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same made-up dump, plain and compact."""
    compact = tmp_path_factory.mktemp("compact") / "train"
    plain = open_dataset(shards / "train")
    plan = plan_shards(len(plain), len(plain))
    writer = DatasetWriter(compact, plain.header.with_encoding("compact"), plan)
    writer.write(plan[0], plain.rows())
    writer.close()
    return shards / "train", compact


def losses(folder: Path) -> list[float]:
    """Of three steps of 15 rows, each of which moves the student."""
    dataset = open_dataset(folder, order="any")
    module = DistillModule(build_student(TINY, 37, 40), LossConfig(), 37)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    seen = []
    for step in range(STEPS):
        ((batch, targets),) = load_step(dataset, Slice(0, 15, 15, 0, 1), step).micro
        loss, _ = module(batch, targets, torch.tensor(1.0 / float(targets.weight.sum())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def test_three_steps_from_compact_shards_lose_what_three_from_plain_ones_do(both):
    """The codes move a probability by 7 % at most and in both directions; the mean loss by far less."""
    plain, compact = (losses(folder) for folder in both)
    assert plain[-1] < plain[0] - 0.1
    np.testing.assert_allclose(compact, plain, atol=5e-3)
    assert compact != plain


def test_targets_of_compact_shards_are_those_of_plain_ones_within_the_codes(both):
    (_, a), (_, b) = (load_step(open_dataset(folder), Slice(0, 45, 45, 0, 1), 0).micro[0] for folder in both)
    total = torch.zeros(len(b.q), 37).scatter_add(1, b.ids, b.q)
    wanted = torch.zeros(len(a.q), 37).scatter_add(1, a.ids, a.q)
    torch.testing.assert_close(total.sum(1), torch.ones(len(total)), atol=1e-5, rtol=0)
    torch.testing.assert_close(total, wanted, rtol=0.072, atol=1e-6)
    divergence = torch.where(wanted > 0, wanted * (wanted / total).log(), 0.0).sum(1)
    assert divergence.mean() < 2e-4
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.labels, b.labels)
