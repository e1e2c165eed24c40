"""`shards inspect` and `shards verify`: look into a dataset, distrust a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shards.job import EXIT_USER

from .target import AsJson

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A dataset (train/ or val/), or the folder that holds several.")
]


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Look into shards.", no_args_is_help=True, rich_markup_mode=None)
    group.command(epilog="Example: minicodformer shards inspect dumps/quickstart/shards/train --rows 1")(inspect)
    group.command(epilog="Example: minicodformer shards verify dumps/quickstart/shards")(verify)
    app.add_typer(group, name="shards")


def inspect(
    folder: Folder,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 1,
    positions: Annotated[int, typer.Option(min=1, help="Scored positions to show of each row.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset is, and its first rows with what the teacher said."""
    from ..describe import describe, show

    found = [describe(dataset, rows, positions) for dataset in datasets_in(folder)]
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
        return
    for description in found:
        for line in show(description):
            typer.echo(line)


def verify(
    folder: Folder,
    shallow: Annotated[bool, typer.Option("--shallow", help="Hashes and counts only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check hashes, counts, order, masses and alignment; exit code 2 when something is wrong."""
    from shards import verify as verify_dataset

    reports = {str(path): verify_dataset(path, deep=not shallow) for path in datasets_in(folder)}
    if as_json:
        content = {
            p: {"ok": r.ok, "problems": r.problems, "warnings": r.warnings, "checks": r.checks}
            for p, r in reports.items()
        }
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        for path, report in reports.items():
            for check, result in report.checks.items():
                typer.echo(f"{path}: {check}: {result}")
            for text in report.warnings:
                typer.echo(f"{path}: warning: {text}")
            for text in report.problems:
                typer.echo(f"error: {text}", err=True)
            typer.echo(f"{path}: {'ok' if report.ok else f'{len(report.problems)} problem(s)'}")
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(EXIT_USER)


def datasets_in(folder: Path) -> list[Path]:
    """The folder itself, or the datasets inside it; itself again when there are none (opening it will say so)."""
    if (folder / "dataset.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/dataset.json")) or [folder]
