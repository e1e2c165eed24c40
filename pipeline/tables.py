"""The figures of `shards stats` and the positions of `shards inspect` as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_stats(found: dict[str, Any], console: Console) -> None:
    """Print what `shards.stats.stats` found."""
    console.print(Text(f"{found['folder']}: {found['kind']}, encoding {found['encoding']}", style="bold"))
    size = found["bytes"]
    console.print(
        f"{found['rows']:,} rows, {found['tokens']:,} tokens, {found['scored']:,} scored; {size['total']:,} bytes, "
        f"{size['per_scored']:.2f} a scored position"
    )
    if found["rows_looked_at"] < found["rows"]:
        console.print(f"figures below: of {found['rows_looked_at']:,} rows, spread evenly")
    if "mass_kept" in found:
        console.print(_captures(found))
        console.print(_ranks(found["label"]["ranks"]))
    console.print(_sources(found["sources"]))
    console.print(_columns(size["columns"]))


def _captures(found: dict[str, Any]) -> Table:
    table = _table("figure", "value")
    for k, mass in found["mass_kept"].items():
        table.add_row(f"mass kept by the first {k}", f"{mass:.4f}")
    table.add_row("ids in a head, mean", f"{found['head_length']:.2f}")
    draws = found["draws"]
    table.add_row("draws, mean (distinct ids)", f"{draws['mean']:.2f} ({draws['distinct']:.2f})")
    for name in ("rest_mass", "entropy"):
        if found[name] is not None:
            spread = ", ".join(f"{key} {value:.4f}" for key, value in found[name].items())
            table.add_row(name.replace("_", " "), spread)
    label = found["label"]
    table.add_row("label inside the head", f"{label['in_head']:.4f}")
    table.add_row("teacher's cross-entropy (perplexity)", f"{label['cross_entropy']:.4f} ({label['perplexity']:.2f})")
    return table


def _ranks(ranks: list[dict[str, Any]]) -> Table:
    table = _table("rank of the label", "share", "")
    for one in ranks:
        name = f"{one['from']:,}" if one["from"] == one["to"] else f"{one['from']:,} to {one['to']:,}"
        table.add_row(name, f"{one['share']:.4f}", "#" * round(40 * one["share"]))
    return table


def _sources(sources: dict[str, dict[str, int]]) -> Table:
    table = _table("source", "rows", "tokens", "scored")
    for name, counts in sources.items():
        table.add_row(Text(name or "-"), *(f"{counts[key]:,}" for key in ("rows", "tokens", "scored")))
    return table


def _columns(columns: dict[str, dict[str, float]]) -> Table:
    table = _table("column", "bytes", "a token", "a scored position")
    for name, one in columns.items():
        table.add_row(name, f"{one['bytes']:,}", f"{one['per_token']:.3f}", f"{one['per_scored']:.3f}")
    return table


def show_positions(row: dict[str, Any], console: Console) -> None:
    """Print the positions of one row of `describe.describe`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("position", "token", "label", "p", "rank", "head", "rest", "tail"):
        table.add_column(name, justify="right" if name in ("position", "p", "rank", "rest") else "left")
    for p in row["positions"]:
        hit = any(token == p["label"] for token, _ in p["head"])
        table.add_row(
            str(p["position"]),
            Text(repr(p["token"]), style="cyan"),
            Text(repr(p["label"]), style="green" if hit else "red"),
            f"{p['label_probability']:.3f}",
            str(p["label_rank"]),
            _head(p),
            Text(f"{p['rest_mass'][0]:.3f}", style="magenta"),
            Text(" ".join(f"{token!r}x{count}" for token, count in p["tail"][:4]), style="dim"),
        )
    console.print(table)


def _head(position: dict[str, Any]) -> Text:
    text = Text()
    for token, probability in position["head"][:5]:
        text.append(f"{token!r} ", style="bold green" if token == position["label"] else "")
        text.append(f"{probability:.2f}  ", style="yellow")
    return text


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold cyan", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right" if name else "left")
    return table
