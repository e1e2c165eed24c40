"""Writes a configuration for the user's own text: the quickstart's settings, each under its description.

The text comes from the config models, so it cannot fall behind them; it is loaded once before it is written.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shards.errors import UserError
from shards.files import write_atomic

from .config import RunConfig
from .load import load_config
from .names import TREE

_WIDTH = 112
_HEAD = """\
# A run of MiniCodformer. Start it: minicodformer run {file}
#
# These are the quickstart's settings: a few minutes on a laptop. For a student worth having, raise
# prepare.max_tokens, train.steps and train.max_minutes, and see configs/qwen3-8b.yaml for a large teacher.
# Remove a line and its default holds. Relative paths are looked up beside this file, then in the working directory.
"""
_LEFT_OUT = ("root", "variants", "dump_name", "name")


def write_config(path: Path, data: Sequence[Path], name: str | None = None) -> None:
    """Write the file.

    Raises:
        UserError: it exists, a data file does not, or the name is none.
    """
    if path.exists():
        raise UserError(f"{path}: exists; choose another name or remove it")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: a configuration written by init ends in .yaml; choose such a name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first: mkdir -p {path.parent}")
    for file in data:
        if not file.is_file():
            raise UserError(f"{file}: no such file; --data names a file with your text")
    text = render(path, data, name or re.sub(r"[^A-Za-z0-9._-]", "-", path.stem))
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / path.name
        trial.write_text(text, encoding="utf-8")
        load_config(trial)
    write_atomic(path, text)


def render(path: Path, data: Sequence[Path], name: str) -> str:
    """The file's content."""
    folder = path.parent.resolve()
    inputs = [f.relative_to(folder) if f.is_relative_to(folder) else f for f in (file.resolve() for file in data)]
    base = load_config(TREE / "configs" / "quickstart.yaml")
    prepare = base.prepare.model_copy(update={"input": tuple(inputs)})
    lines = [_HEAD.format(file=path), f"name: {_scalar(name)}"]
    lines += _fields(base.model_copy(update={"prepare": prepare}), "")
    return "\n".join(lines) + "\n"


def _fields(model: BaseModel, indent: str) -> Iterator[str]:
    for key, field in type(model).model_fields.items():
        if isinstance(model, RunConfig) and key in _LEFT_OUT:
            continue
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            yield from ([""] if not indent else [])
            yield from _comment(field.description or _first_line(type(value)), indent)
            yield f"{indent}{key}:"
            yield from _fields(value, indent + "  ")
        else:
            yield from _comment(field.description, indent)
            yield _setting(key, value, indent)


def _setting(key: str, value: Any, indent: str) -> str:
    off = "# " if value is None else ""  # nothing chosen: shown, not set
    return f"{indent}{off}{key}: {_scalar(value)}"


def _comment(text: str | None, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join((text or "").split()), _WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0] if model.__doc__ else ""


def _scalar(value: Any) -> str:
    """JSON is YAML; words that need no quotes get none."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_scalar(v) for v in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value), ensure_ascii=False)
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value)
        and value.lower() not in ("null", "true", "false")
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
