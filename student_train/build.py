"""A fresh student from config and seed: the same weights on every rank and in evaluation's untrained twin."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .config import TrainConfig
from .model.lm import Student


def build_student(
    train: TrainConfig, vocab_size: int, vocab_rows: int, log_unigram: NDArray[np.float32] | None = None
) -> Student:
    """Initial weights are a function of `train.student`, `train.seed` and the vocabulary.

    Args:
        log_unigram: [vocab_size], the output bias at start; None: zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        student = Student(train.student, vocab_size, vocab_rows)
    with torch.no_grad():
        student.head_bias.zero_()
        if log_unigram is not None:
            student.head_bias[:vocab_size] = torch.from_numpy(log_unigram)
    return student
