"""The arguments that stage commands share: `[CONFIG] [KEY=VALUE]...`, the default being the quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shards.errors import UserError

from ..config import RunConfig
from ..load import load_config
from ..names import TREE
from ..progress import Screen

QUICKSTART = TREE / "configs" / "quickstart.yaml"

Target = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A .yaml or .toml file (default: configs/quickstart.yaml), then settings that win over it.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the data as JSON on standard output, progress on standard error.")
]


def read_target(words: Sequence[str] | None) -> tuple[RunConfig, Path]:
    """The config that the words name, and its file."""
    words = list(words or [])
    path = Path(words.pop(0)) if words and "=" not in words[0] else QUICKSTART
    for word in words:
        if "=" not in word and Path(word).suffix in (".yaml", ".yml", ".toml"):
            raise UserError(f"{word}: a second configuration; put one on top of another with 'extends: {path}' in it")
    return load_config(path, words), path


def screen_for(as_json: bool) -> Screen:
    """Progress goes to standard error when standard output is for data."""
    return Screen(Console(stderr=as_json, highlight=False, soft_wrap=True))
