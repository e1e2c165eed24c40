"""`init`, `doctor`, `clean`: begin with own text, see what is missing, remove what is no longer wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shards.job import EXIT_FAILED

from .target import AsJson


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: minicodformer init my.yaml --data diary.txt --data letters.jsonl")(init)
    app.command(epilog="Example: minicodformer doctor --json")(doctor)
    app.command(epilog="Example: minicodformer clean --yes")(clean)


def init(
    config: Annotated[Path, typer.Argument(help="The file to write; never overwrites one.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Your text: .txt, .jsonl, .json, .parquet, ... (repeatable).")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the file's.")] = None,
) -> None:
    """Write a commented configuration for your own text."""
    from ..initialise import write_config

    write_config(config, data, name)
    typer.echo(f"{config}: written; look it over, then: minicodformer run {config}")


def doctor(
    root: Annotated[Path, typer.Option(help="Where dumps/ and runs/ will lie.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """What is installed, what is missing, and the command that mends it."""
    from ..doctor import examine

    findings = examine(root)
    if as_json:
        typer.echo(json.dumps([f.to_json() for f in findings], indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:8} {finding.what}: {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':8} mend it: {finding.remedy}")
    if any(f.state == "missing" for f in findings):
        raise typer.Exit(EXIT_FAILED)


def clean(
    root: Annotated[Path, typer.Option(help="Where dumps/ and runs/ lie.")] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List (and with --yes remove) caches and results of earlier settings; current dumps and runs stay."""
    from ..clean import human, leftovers, remove

    found = leftovers(root)
    if as_json:
        typer.echo(json.dumps([item.to_json() for item in found], indent=1))
    else:
        for item in found:
            typer.echo(f"{human(item.num_bytes):>10}  {item.what:34} {item.path}")
        typer.echo(f"{human(sum(item.num_bytes for item in found)):>10}  in all" if found else "nothing to remove")
    if yes:
        for item in found:
            remove(item)
        typer.echo(f"removed {len(found)}", err=as_json)
    elif found and not as_json:
        typer.echo("remove them: minicodformer clean --yes")
