"""Where the user cache lies. The same rule as in phase one's `packaged`, which the conductor may not import (torch)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/minicodformer`, by default `~/.cache/minicodformer`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minicodformer"
