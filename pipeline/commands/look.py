"""`shards inspect`, `verify` and `convert`: look into a dataset, distrust it, write it in another encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from shards.job import EXIT_USER

from . import reshape
from .target import AsJson

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A dataset (train/ or val/), or the folder that holds several.")
]


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Look into shards, convert them.", no_args_is_help=True, rich_markup_mode=None)
    group.command(epilog="Example: minicodformer shards inspect dumps/quickstart/shards/train --rows 1")(inspect)
    group.command(epilog="Example: minicodformer shards verify dumps/quickstart/shards")(verify)
    group.command(
        epilog="Example: minicodformer shards convert dumps/quickstart/shards dumps/small/shards --to compact"
    )(convert)
    reshape.add(group)
    app.add_typer(group, name="shards")


def inspect(
    folder: Folder,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 1,
    positions: Annotated[int, typer.Option(min=1, help="Scored positions to show of each row.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset is, and its first rows with what the teacher said."""
    from rich.console import Console

    from ..describe import describe, show
    from ..tables import show_positions

    found = [describe(dataset, rows, positions) for dataset in datasets_in(folder)]
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for description in found:
        for line in show(description, positions=not console.is_terminal):
            typer.echo(line)
        for row in description["first_rows"] if console.is_terminal else ():
            show_positions(row, console)


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


def convert(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder; an interrupted conversion goes on in it.")],
    to: Annotated[Literal["plain", "compact"], typer.Option("--to", help="The encoding to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a dump again in another encoding; fingerprints, rows and shards stay what they are."""
    from ..convert import convert_folder

    results = convert_folder(folder, datasets_in(folder), out, to, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in results], indent=1, ensure_ascii=False))
        return
    for result in results:
        before, after = (size / max(1, result.scored) for size in (result.bytes_before, result.bytes_after))
        typer.echo(
            f"{result.out}: {to}, {result.shards} shards, {result.scored:,} scored positions, "
            f"{result.bytes_before:,} -> {result.bytes_after:,} bytes ({before:.1f} -> {after:.1f} a scored position)"
        )


def datasets_in(folder: Path) -> list[Path]:
    """The folder itself, or the datasets inside it; itself again when there are none (opening it will say so)."""
    if (folder / "dataset.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/dataset.json")) or [folder]
