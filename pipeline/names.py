"""Do the four generic package names mean *this* tree? Another distribution may bring a `pipeline` or `shards` too."""

from __future__ import annotations

import importlib.util
from importlib.metadata import packages_distributions
from pathlib import Path

PACKAGES = ("pipeline", "teacher_dump", "student_train", "shards")
DISTRIBUTION = "minicodformer"
TREE = Path(__file__).resolve().parents[1]


def foreign_names() -> list[str]:
    """One line for each package name that resolves outside of this tree (cheap: nothing is imported)."""
    lines = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != TREE / name:
            lines.append(
                f"package '{name}' resolves to {found or 'a folder without code'}, not to {TREE / name}; "
                "remove what is in the way, or use a fresh environment: python -m venv fresh"
            )
    return lines


def shared_names() -> list[str]:
    """One line for each package name that another installed distribution owns as well."""
    owners = packages_distributions()
    lines = []
    for name in PACKAGES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != DISTRIBUTION})
        if others:
            lines.append(
                f"package '{name}' is also installed by {', '.join(others)}; mend it: pip uninstall {' '.join(others)}"
            )
    return lines
