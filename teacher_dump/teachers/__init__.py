"""Teachers: what turns rows into captures. `build` is the one place that knows which backend a config means."""

from __future__ import annotations

from shards.job import Emit

from ..config import HFTeacher, PackagedTeacher
from ..config import Teacher as TeacherConfig
from ..extraction import ExtractionSpec
from .base import Teacher


def build(config: TeacherConfig, spec: ExtractionSpec, *, batch_tokens: int, emit: Emit) -> Teacher:
    """Load the teacher that `config` names, ready to score.

    Raises:
        UserError: it cannot be loaded, or its vocabulary is too small for the corpus.
    """
    match config:
        case HFTeacher() | PackagedTeacher():
            from .hf import load

            return load(config, spec, batch_tokens=batch_tokens, emit=emit)
