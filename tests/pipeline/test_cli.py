"""The command line from outside: help, light imports, exit codes, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline import cli
from pipeline.commands.generate import find_student
from pipeline.names import TREE, foreign_names
from shards.errors import UserError

STAGES = ["prepare", "dump", "train", "eval", "export", "report"]
TALK = ["generate", "chat", "serve", "view"]
SHARDS = [f"shards {verb}" for verb in ("inspect", "verify", "convert", "stats", "sample", "split", "merge", "export")]
COMMANDS = sorted(["run", "sweep", *STAGES, *TALK, *SHARDS, "init", "doctor", "clean"])


def call(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_no_tensor_library(tmp_path: Path) -> None:
    code = """
import sys
from pipeline.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
heavy = sorted({"torch", "transformers", "deepspeed", "vllm", "matplotlib"} & set(sys.modules))
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Distil a large language model" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example_of_itself(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    example = re.search(r"Example: (minicodformer .*)$", text)
    assert example, text
    assert example[1].startswith(f"minicodformer {command}")


def test_the_commands_are_these_and_no_stubs() -> None:
    group = typer.main.get_command(cli.app)
    names = sorted(group.commands)  # type: ignore[attr-defined]
    assert names == sorted({c.split()[0] for c in COMMANDS})


def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(tmp_path: Path) -> None:
    done = call("run", "nowhere.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere.yaml: no such file")
    assert done.stderr.count("\n") == 1


def test_dry_run_tells_what_is_done_as_data(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("one\n---\ntwo\n")
    (tmp_path / "c.yaml").write_text("name: c\nprepare: {input: [c.txt]}\n")
    done = call("run", "c.yaml", "train.steps=3", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)
    assert [s["stage"] for s in stages] == ["prepare", "dump", "train", "eval", "export", "report"]
    assert not any(s["done"] for s in stages)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.txt", "c.yaml"], "a dry run writes nothing"


def test_data_in_the_working_directory_never_shadows_the_packages(tmp_path: Path) -> None:
    for name in ("shards", "teacher_dump"):
        (tmp_path / name).mkdir()
    assert call("--help", cwd=tmp_path).returncode == 0
    assert foreign_names() == []


def test_verify_of_no_dataset_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = call("shards", "verify", "empty", cwd=tmp_path)
    assert done.returncode == 2
    assert "dataset.json" in done.stderr


def test_prepare_by_flags_wants_an_output(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    done = call("prepare", "--input", "a.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "--output" in done.stderr


class TestFindingTheStudent:
    def leave(self, root: Path, run: str, done: bool = True) -> Path:
        train = root / "runs" / run / "train"
        (train / "model").mkdir(parents=True)
        (train / "model" / "config.json").write_text("{}")
        marker = {"stage": "train", "digest": "d", "done": done, "summary": {}}
        (train / "stage.json").write_text(json.dumps(marker))
        return train / "model"

    def test_the_newest_trained_run_is_the_default(self, tmp_path: Path) -> None:
        import os

        old, new = self.leave(tmp_path, "old"), self.leave(tmp_path, "compare/new")
        self.leave(tmp_path, "unfinished", done=False)
        os.utime(old.parent / "stage.json", (1, 1))
        assert find_student(tmp_path, None, None) == new

    def test_a_run_is_found_by_name_or_folder(self, tmp_path: Path) -> None:
        model = self.leave(tmp_path, "mine")
        assert find_student(tmp_path, "mine", None) == model
        assert find_student(Path("elsewhere"), str(tmp_path / "runs" / "mine"), None) == model
        assert find_student(tmp_path, None, model) == model

    @pytest.mark.parametrize(("run", "student"), [("none", None), (None, "none"), (None, None)])
    def test_what_is_not_there_is_named(self, tmp_path: Path, run: str | None, student: str | None) -> None:
        with pytest.raises(UserError, match="none" if run or student else "no trained student yet"):
            find_student(tmp_path, run, Path(student) if student else None)


def test_the_wheel_holds_every_package_and_nothing_else(tmp_path: Path) -> None:
    """Without an isolated build: only where setuptools is installed here."""
    pytest.importorskip("setuptools")
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    source = tmp_path / "source"
    copied = ("pipeline", "teacher_dump", "student_train", "shards", "tests", "configs")
    import shutil

    for name in copied:
        shutil.copytree(TREE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, source)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    if "Unknown" in done.stderr or "must be" in done.stderr or "invalid pyproject" in done.stderr:
        pytest.skip("the installed setuptools is too old for pyproject.toml; pip builds with its own")
    assert done.returncode == 0, done.stderr
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    ours = {n for n in names if not n.startswith("minicodformer-")}
    expected = {str(p.relative_to(TREE)) for package in copied[:4] for p in (TREE / package).rglob("*.py")}
    assert expected <= ours
    assert {n.split("/")[0] for n in ours} == set(copied[:4])
