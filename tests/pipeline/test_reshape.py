"""The commands that look at, choose, combine and export shards, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline import cli
from pipeline.describe import describe
from pipeline.tables import show_positions
from shards import open_dataset, verify
from shards.errors import UserError

GOLDEN = Path(__file__).parents[1] / "shards" / "golden" / "captures"


def call(*args: object) -> str:
    done = CliRunner().invoke(cli.app, ["shards", *map(str, args)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_stats_as_data_and_as_tables() -> None:
    found = json.loads(call("stats", GOLDEN, "--json"))
    assert (found["tokens"], found["scored"]) == (34, 17)
    shown = call("stats", GOLDEN)
    for text in ("mass kept by the first 1", "rest mass", "rank of the label", "head_logprobs", "a scored position"):
        assert text in shown


def test_a_dataset_is_split_merged_sampled_and_exported(tmp_path: Path) -> None:
    rows = len(open_dataset(GOLDEN))
    parts = json.loads(call("split", GOLDEN, tmp_path / "a", tmp_path / "b", "--rows", 1, "--by", "row", "--json"))
    assert [part["rows"] for part in parts] == [1, rows - 1]
    merged = json.loads(call("merge", tmp_path / "b", tmp_path / "a", tmp_path / "m", "--json"))
    assert (merged["rows"], merged["scored"]) == (rows, 17)
    assert verify(tmp_path / "m").problems == []
    assert "2 rows" in call("sample", tmp_path / "m", tmp_path / "s", "--rows", 2)
    for to in ("parquet", "hf", "distillkit"):
        exported = json.loads(call("export", tmp_path / "m", tmp_path / to, "--to", to, "--json"))
        assert exported["lost"]
        assert "README.md" in exported["files"]


@pytest.mark.parametrize(
    "words",
    [["sample", "IN", "OUT", "--rows", "1"], ["split", "IN", "NEW", "OUT", "--rows", "1"], ["merge", "IN", "IN", "OUT"]]
    + [["export", "IN", "OUT", "--to", to] for to in ("parquet", "hf", "distillkit")],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_an_existing_output_is_refused_with_one_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "OUT").mkdir()
    places = {"IN": str(GOLDEN), "OUT": str(tmp_path / "OUT"), "NEW": str(tmp_path / "NEW")}
    with pytest.raises(UserError):
        CliRunner().invoke(cli.app, ["shards", *(places.get(w, w) for w in words)], catch_exceptions=False)
    assert [p.name for p in tmp_path.iterdir()] == ["OUT"]


def test_a_refusal_is_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "shards", "sample", str(GOLDEN), str(tmp_path), "--rows", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}: exists already and is never overwritten; choose another name, or delete it\n"
    )


def test_positions_are_a_table_in_colour_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=160, color_system="standard")
    with console.capture() as captured:
        show_positions(describe(GOLDEN, 1, 4)["first_rows"][0], console)
    text = captured.get()
    assert "\x1b[" in text
    assert "position" in text
    assert "#" in text
