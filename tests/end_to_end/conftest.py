"""A tiny random teacher, a little real text and one config: the whole pipeline in seconds, on real components."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Project
from tiny_teacher import make_tiny_teacher


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    make_tiny_teacher(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, tiny_teacher_folder: Path) -> Project:
    """A fresh working folder with `tiny.yaml` in it."""
    return Project.create(tmp_path, {"kind": "hf", "model": str(tiny_teacher_folder)})
