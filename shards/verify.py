"""Distrust a dataset: what `verify` finds, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Report:
    """What verify found."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(folder: Path, *, deep: bool = True) -> Report:
    """Manifest and hashes."""
    from .errors import ShardError
    from .files import sha256_file
    from .reader import open_dataset

    report = Report()
    try:
        dataset = open_dataset(folder)
    except ShardError as error:
        report.problems.append(str(error))
        return report
    for shard in dataset.manifest.shards:
        path = dataset.folder / shard.file
        if not path.is_file() or sha256_file(path) != shard.sha256:
            report.problems.append(
                f"{path}: missing or not the bytes that were written; delete it and run the stage again"
            )
    return report
