"""`shards stats`, `sample`, `split`, `merge` and `export`: figures of a dataset, and datasets made of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from shards.errors import UserError
from shards.manifest import Manifest

from ..progress import Screen
from .target import AsJson, screen_for

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset: the folder with dataset.json.")]
Seed = Annotated[int, typer.Option(min=0, help="Equal seeds choose equal rows.")]


def add(group: typer.Typer) -> None:
    """Add the commands to the group `shards`."""
    group.command(epilog="Example: minicodformer shards stats dumps/quickstart/shards/train")(stats)
    group.command(
        epilog="Example: minicodformer shards sample dumps/quickstart/shards/train dumps/small/shards/train --rows 20"
    )(sample)
    group.command(
        epilog="Example: minicodformer shards split dumps/quickstart/shards/train dumps/a dumps/b --fraction 0.9"
    )(split)
    group.command(
        epilog="Example: minicodformer shards merge dumps/one/shards/train dumps/two/shards/train dumps/both"
    )(merge)
    group.command(epilog="Example: minicodformer shards export dumps/quickstart/shards exported --to hf")(export)


def stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset, or the folder that holds several.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Look at this many rows only, spread evenly.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mass kept by K, draws, rest, entropy, ranks of the label, and where the bytes go."""
    from shards.stats import stats as figures

    from ..tables import show_stats
    from .look import datasets_in

    with _progress("stats", as_json, "rows") as told:
        found = [figures(dataset, rows, told) for dataset in datasets_in(folder)]
    if as_json:
        _print_json(found if len(found) > 1 else found[0])
        return
    for one in found:
        show_stats(one, Console(highlight=False))


def sample(
    folder: Dir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    rows: Annotated[int, typer.Option(min=1, help="How many.")],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A random subset as a dataset of its own; fingerprints and row ids are kept."""
    from shards.derive import sample as sample_rows

    from ..describe import tokenizer_beside

    with _progress("sample", as_json, "rows") as told:
        made = {out: sample_rows(folder, out, rows, seed, told, tokenizer_beside(folder))}
    _finish(made, as_json)


def split(
    folder: Dir,
    out_a: Annotated[Path, typer.Argument(metavar="OUT_A", help="A new folder for the first part.")],
    out_b: Annotated[Path, typer.Argument(metavar="OUT_B", help="A new folder for the rest.")],
    fraction: Annotated[float | None, typer.Option(help="Share of the rows for OUT_A, between 0 and 1.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows for OUT_A.")] = None,
    by: Annotated[
        Literal["document", "row"], typer.Option(help="document: rows that share a document stay together.")
    ] = "document",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Two disjoint parts that together are the dataset."""
    from shards import open_dataset
    from shards.derive import split as split_rows

    from ..describe import tokenizer_beside

    if (fraction is None) == (rows is None):
        raise UserError("--fraction: give either --fraction SHARE or --rows N, one of them")
    if fraction is not None:
        if not 0 < fraction < 1:
            raise UserError(f"--fraction {fraction}: not between 0 and 1; give for instance 0.9")
        rows = max(1, round(fraction * len(open_dataset(folder))))
    assert rows is not None
    with _progress("split", as_json, "rows") as told:
        parts = split_rows(folder, (out_a, out_b), rows, seed, by, told, tokenizer_beside(folder))
    made = dict(zip((out_a, out_b), parts, strict=True))
    _finish(made, as_json)


def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR... OUT", help="Two or more datasets, and a new folder.")
    ],
    as_json: AsJson = False,
) -> None:
    """One dataset of all rows; teacher, tokenizer and settings must be the same."""
    from shards.derive import merge as merge_rows

    from ..describe import tokenizer_beside

    if len(folders) < 3:
        raise UserError("merge: give at least two datasets and then the new folder, as in 'merge A B OUT'")
    *sources, out = folders
    with _progress("merge", as_json, "rows") as told:
        made = {out: merge_rows(sources, out, told, tokenizer_beside(sources[0]))}
    _finish(made, as_json)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset, or the folder that holds several.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[Literal["parquet", "hf", "distillkit"], typer.Option("--to", help="For whom.")],
    as_json: AsJson = False,
) -> None:
    """Write for other programs, and say what is lost: Parquet, a Hugging Face dataset, or DistillKit's layout."""
    from shards import open_dataset
    from shards.distillkit import export_distillkit
    from shards.export import export_hf, export_parquet, split_name

    from .look import datasets_in

    found = datasets_in(folder)
    sources = {split_name(open_dataset(dataset)): dataset for dataset in found}
    if len(sources) != len(found):
        raise UserError(f"{folder}: several datasets are of the same split; export them one by one")
    with _progress("export", as_json, "shards") as told:
        match to:
            case "parquet":
                lost = export_parquet(sources, out, told)
            case "hf":
                lost = export_hf(sources, out, told)
            case "distillkit":
                lost = export_distillkit(sources, out, told)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in files)
    if as_json:
        _print_json(
            {
                "folder": str(out),
                "to": to,
                "files": [str(p.relative_to(out)) for p in files],
                "bytes": size,
                "lost": lost,
            }
        )
        return
    typer.echo(f"{out}: {len(files)} files, {size:,} bytes; lost on the way:")
    for text in lost:
        typer.echo(f"  - {text}")


class _progress:  # noqa: N801 (used as a function)
    """A bar on a terminal, plain lines in a log, while the work reports (done, total)."""

    def __init__(self, label: str, as_json: bool, unit: str) -> None:
        self._label, self._unit = label, unit
        self._screen: Screen = screen_for(as_json)

    def __enter__(self) -> Callable[[int, int], None]:
        self._screen.stage_begins(self._label)
        return self._tell

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._screen.stage_ends("done" if kind is None else "failed")

    def _tell(self, done: int, total: int) -> None:
        self._screen.event(
            {"event": "progress", "stage": self._label, "done": done, "total": total, "unit": self._unit}
        )
        self._screen.tick()


def _finish(made: dict[Path, Manifest], as_json: bool) -> None:
    """Say what was made."""
    results = []
    for out, manifest in made.items():
        size = sum(shard.bytes for shard in manifest.shards)
        results.append(
            {
                "folder": str(out),
                "rows": manifest.header.num_rows,
                "tokens": manifest.num_tokens,
                "scored": manifest.num_scored,
                "shards": len(manifest.shards),
                "bytes": size,
            }
        )
    if as_json:
        _print_json(results if len(results) > 1 else results[0])
        return
    for one in results:
        typer.echo(
            f"{one['folder']}: {one['rows']:,} rows, {one['tokens']:,} tokens, {one['scored']:,} scored, "
            f"{one['shards']} shards, {one['bytes']:,} bytes"
        )


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
