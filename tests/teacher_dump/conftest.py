"""Tokenizers that several files of this room's tests use, loaded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_teacher import make_tiny_tokenizer

if TYPE_CHECKING:
    from teacher_dump.tokenizers import CorpusTokenizer


def _load(folder: Path) -> CorpusTokenizer:
    from shards.job import silent
    from teacher_dump.tokenizers import load_tokenizer

    return load_tokenizer(str(folder), silent)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 384 entries with a ChatML template."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    folder.mkdir()
    make_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer_folder: Path) -> CorpusTokenizer:
    return _load(tiny_tokenizer_folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> CorpusTokenizer:
    return _load(smollm2_folder)


@pytest.fixture(scope="session")
def qwen3(qwen3_tokenizer_folder: Path) -> CorpusTokenizer:
    return _load(qwen3_tokenizer_folder)
