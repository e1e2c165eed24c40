"""Does the teacher have a vocabulary row for every token? Reads the model's config, never its weights."""

from __future__ import annotations

from pathlib import Path

from shards.errors import UserError
from shards.files import read_json
from shards.job import Emit

from .config import HFTeacher, Teacher
from .packaged import teacher_folder
from .tokenizers import CorpusTokenizer


def vocabulary_rows(teacher: Teacher, tokenizer: CorpusTokenizer, emit: Emit) -> int:
    """Rows of the teacher's embedding, padding included; the tokenizer's size where no config tells.

    Raises:
        UserError: fewer rows than tokens.
    """
    source = teacher_folder(teacher, emit)
    rows = _configured_rows(source, teacher.revision if isinstance(teacher, HFTeacher) else None)
    if rows is None:
        return tokenizer.vocab_size
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"{tokenizer.name}: the tokenizer has {tokenizer.vocab_size} tokens, but the teacher {source} only {rows} "
            "vocabulary rows; use the teacher's own tokenizer (leave prepare.tokenizer out)"
        )
    return rows


def _configured_rows(source: Path | str, revision: str | None) -> int | None:
    """`vocab_size` of a folder's or hub model's config; None for a GGUF file or a hub that cannot be reached."""
    if isinstance(source, Path):
        if not source.is_dir():
            return None
        values = read_json(source / "config.json")
        rows = values.get("vocab_size") or values.get("text_config", {}).get("vocab_size")
        return int(rows) if rows else None
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(source, revision=revision or "main").get_text_config().vocab_size)
    except (OSError, ValueError):
        return None
