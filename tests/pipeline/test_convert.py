"""`shards convert` from outside: a whole dump folder, its teacher's files, JSON, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.convert import convert_folder
from shards import UserError, open_dataset

GOLDEN = Path(__file__).parents[1] / "shards" / "golden" / "captures"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A dump folder as the stage leaves it: two splits and the teacher's files."""
    for split in ("train", "val"):
        copytree(GOLDEN, tmp_path / "dump" / split)
    (tmp_path / "dump" / "teacher" / "tokenizer").mkdir(parents=True)
    (tmp_path / "dump" / "teacher" / "tokenizer" / "tokenizer.json").write_text("{}")
    return tmp_path / "dump"


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_a_whole_dump_is_converted_with_the_teachers_files(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    done = CliRunner().invoke(app, ["shards", "convert", str(dump), str(out), "--to", "compact", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(Path(f["out"]).name, f["encoding"], f["rows"], f["scored"], f["shards"]) for f in found] == [
        ("train", "compact", 5, 17, 2),
        ("val", "compact", 5, 17, 2),
    ]
    assert found[0]["bytes_after"] == sum(p.stat().st_size for p in (out / "train").glob("*.arrow"))
    assert "shard 2 of 2" in done.stderr
    assert names(out) == names(dump)
    assert open_dataset(out / "val").header.encoding == "compact"


def test_a_conversion_that_was_stopped_between_datasets_goes_on(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    convert_folder(dump, [dump / "train"], out, "compact", lambda _: None)
    (out / "teacher" / "tokenizer" / "tokenizer.json").unlink()
    before = (out / "train" / "shard-00000.arrow").stat().st_mtime_ns
    results = convert_folder(dump, [dump / "train", dump / "val"], out, "compact", lambda _: None)
    assert [r.out.name for r in results] == ["train", "val"]
    assert (out / "train" / "shard-00000.arrow").stat().st_mtime_ns == before


@pytest.mark.parametrize("inside", ["", "small"])
def test_a_place_inside_the_dump_is_refused(dump: Path, inside: str) -> None:
    with pytest.raises(UserError, match="lies in the folder to convert"):
        convert_folder(dump, [dump / "train"], dump / inside, "compact", lambda _: None)


def test_a_finished_conversion_is_not_done_over(dump: Path, tmp_path: Path) -> None:
    convert_folder(dump, [dump / "train", dump / "val"], tmp_path / "small", "compact", lambda _: None)
    with pytest.raises(UserError, match="is converted already, and never overwritten"):
        convert_folder(dump, [dump / "train", dump / "val"], tmp_path / "small", "compact", lambda _: None)
