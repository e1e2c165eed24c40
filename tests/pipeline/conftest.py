"""A run of the conductor without the phases: a small script that keeps their promises stands in for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_phases import FAKE_PHASE, FakePhases
from rich.console import Console

from pipeline import run
from pipeline.config import RunConfig
from pipeline.load import load_config
from pipeline.progress import Screen
from pipeline.stages import Stage


@pytest.fixture
def fake_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhases:
    script = tmp_path / "fake_phase.py"
    script.write_text(FAKE_PHASE)

    def command(stage: Stage, ranks: int) -> list[str]:
        return [sys.executable, str(script), str(stage.job_file)]

    monkeypatch.setattr(run, "phase_command", command)
    return FakePhases(tmp_path)


@pytest.fixture
def screen() -> Screen:
    """A screen that writes into a buffer: `screen.console.file.getvalue()`."""
    import io

    return Screen(Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True))


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """`make_config("train.steps=5", name="x")`: a small run rooted in tmp_path."""
    (tmp_path / "corpus.txt").write_text("one\n---\ntwo\n")

    def make(*overrides: str, **settings: object) -> RunConfig:
        tree = {"name": "r", "root": str(tmp_path), "prepare": {"input": ["corpus.txt"]}, **settings}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_config(path, overrides)

    return make
