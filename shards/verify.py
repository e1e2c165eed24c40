"""Distrust a dataset: hashes, counts, schema and, with `deep`, every number in it. The checks are in `checks/`.

Arrow has no checksums: most flipped bits read back as wrong values without an error, so the hashes come first and a
shard that fails them is not decoded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checks.captures import HEADS, LABELS, MASS, TAILS, check_captures
from .checks.findings import Findings
from .checks.flat import flatten
from .checks.offbyone import OffByOne
from .checks.rows import ROWS, SHAPES, check_rows, check_scored_shape, check_shapes
from .errors import ShardError
from .manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest
from .reader import RESTORE_SHARD, ShardFile

MANIFEST, FILES, COUNTS, OFF_BY_ONE = "manifest", "files", "counts", "off-by-one"


@dataclass
class Report:
    """What was checked and what was found."""

    problems: list[str] = field(default_factory=list)
    """One line each: shard, row, position, value, remedy."""
    warnings: list[str] = field(default_factory=list)
    """Nothing wrong with the data, but worth knowing."""
    checks: dict[str, str] = field(default_factory=dict)
    """Name of a check -> `ok`, `failed: ...`, `inconclusive: ...` or `skipped: ...`."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """The report for people."""
        checks = [f"{name:<12}{outcome}" for name, outcome in self.checks.items()]
        return [
            *checks,
            *(f"warning: {text}" for text in self.warnings),
            *(f"problem: {text}" for text in self.problems),
        ]

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {"ok": self.ok} | asdict(self)


def verify(folder: Path, *, deep: bool = True) -> Report:
    """Check the dataset in `folder`; never raises for what is wrong with it.

    `deep=False` stops after hashes and schemas, which already covers every damage after writing.
    """
    folder = Path(folder)
    report = Report()
    try:
        manifest = load_manifest(folder)
    except ShardError as error:
        report.problems.append(str(error))
        report.checks[MANIFEST] = "failed: the rest cannot be checked without it"
        return report
    report.problems += _manifest_problems(folder, manifest)
    report.checks[MANIFEST] = _outcome(len(report.problems))
    report.warnings += _strangers(folder, manifest)

    counts: Counter[str] = Counter()
    probe = OffByOne()
    for entry in manifest.shards:
        found = Findings(entry.file)
        _check_shard(folder, entry, manifest, found, probe if deep else None)
        report.problems += found.lines()
        counts += found.counts
    names = [FILES]
    if deep:
        names += [COUNTS, SHAPES, ROWS]
        names += [HEADS, MASS, TAILS, LABELS] if manifest.header.kind == "captures" else []
    report.checks |= {name: _outcome(counts[name]) for name in names}
    if deep:
        _judge_alignment(report, manifest, probe)
    return report


def _manifest_problems(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / MANIFEST_NAME
    problems = []
    next_row = 0
    for entry in manifest.shards:
        gap = entry.first_row != next_row
        if entry.first_row < next_row or (gap and manifest.complete):
            problems.append(
                f"{path}: {entry.file} begins at row {entry.first_row}, not {next_row}; restore the manifest"
            )
        next_row = entry.first_row + entry.num_rows
    if manifest.complete and next_row != manifest.header.num_rows:
        problems.append(f"{path}: lists {next_row} rows of {manifest.header.num_rows}; restore the manifest")
    if not manifest.complete:
        rows = sum(entry.num_rows for entry in manifest.shards)
        problems.append(
            f"{path}: not complete ({rows} of {manifest.header.num_rows} rows); run the stage that writes it again"
        )
    return problems


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    known = {entry.file for entry in manifest.shards}
    unlisted = sorted(path.name for path in folder.glob("shard-*.arrow") if path.name not in known)
    return [f"{folder / name}: not listed in {MANIFEST_NAME}, so nobody reads it; delete it" for name in unlisted]


def _check_shard(folder: Path, entry: ShardEntry, manifest: Manifest, found: Findings, probe: OffByOne | None) -> None:
    """Hash and schema of one shard and, given a `probe`, its content."""
    path = folder / entry.file
    try:
        shard = ShardFile(folder, entry, manifest)
        if probe is not None:
            _check_content(shard, entry, manifest, found, probe)
    except ShardError as error:
        found.shard(FILES, str(error).removeprefix(f"{path}: "))


def _check_content(shard: ShardFile, entry: ShardEntry, manifest: Manifest, found: Findings, probe: OffByOne) -> None:
    header, row = manifest.header, entry.first_row
    tokens = scored = 0
    for index in range(shard.num_batches):
        columns = shard.columns(index)
        flat = flatten(columns, row)
        planned = min(manifest.rows_per_batch, entry.first_row + entry.num_rows - row)
        if columns.num_rows != planned:
            found.shard(COUNTS, f"batch {index} has {columns.num_rows} rows, not {planned}; {RESTORE_SHARD}")
            return
        row += columns.num_rows
        tokens += len(flat.tokens)
        scored += flat.num_positions
        if not (check_scored_shape(flat, found) and check_shapes(flat, header, found)):
            continue
        check_rows(flat, header, found)
        if header.kind == "captures":
            check_captures(flat, header, found)
            probe.add(flat)
    counted, listed = (row - entry.first_row, tokens, scored), (entry.num_rows, entry.tokens, entry.scored)
    if counted != listed:
        found.shard(COUNTS, f"(rows, tokens, scored) are {counted}, {listed} in the manifest; {RESTORE_SHARD}")


def _judge_alignment(report: Report, manifest: Manifest, probe: OffByOne) -> None:
    if manifest.header.kind == "rows":
        report.checks[OFF_BY_ONE] = "skipped: no captures in a prepared corpus"
        return
    outcome, why = probe.verdict()
    report.checks[OFF_BY_ONE] = f"{outcome}: {why}"
    if outcome == "failed":
        report.problems.append(f"all shards: {why}; the captures are shifted: discard this dump and make it again")
    elif outcome == "inconclusive":
        report.warnings.append(f"off-by-one probe: {why}")


def _outcome(count: int) -> str:
    return "ok" if count == 0 else f"failed: {count} found"
