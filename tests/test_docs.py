"""The documentation keeps its word: links lead somewhere, commands exist, snippets run, both READMEs tell the same."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import typer.main

from pipeline.cli import app
from shards import Capture, DatasetWriter, Header, Row, plan_shards

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
QUICKSTART = ROOT / "configs" / "quickstart"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
REGISTRIES = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|deb\.debian\.org|download\.pytorch\.org)")
MACHINE_PATH = re.compile(r"(?<![\w./~{}-])/(?:work|root|home|Users)/\w+")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [p for line in listed.stdout.splitlines() if (p := ROOT / line).is_file()]


def text_of(path: Path) -> str | None:
    """The file's text; None for binary files."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def headings(path: Path) -> list[str]:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    return re.findall(r"^## (.+)$", prose, re.M)


def snippets(path: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def commands_of_the_cli() -> set[str]:
    """Every command a user can type after `minicodformer`, groups with their sub-commands."""
    root = typer.main.get_command(app)
    names = set()
    for name, command in root.commands.items():
        below = getattr(command, "commands", {})
        names |= {f"{name} {sub}" for sub in below} or {name}
    return names


def commands_mentioned(path: Path) -> set[str]:
    """What follows `minicodformer` in code (fenced or inline) of a document."""
    text = path.read_text(encoding="utf-8")
    code = [body for _, body in FENCE.findall(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    words = [m.split() for line in code for m in re.findall(r"\bminicodformer ((?:[a-z]+ ?)+)", line)]
    groups = {name.split()[0] for name in commands_of_the_cli() if " " in name}
    return {" ".join(w[:2]) if w[0] in groups and len(w) > 1 else w[0] for w in words}


def test_every_relative_link_leads_to_a_file() -> None:
    broken = []
    for path in tracked():
        if path.suffix != ".md":
            continue
        prose = FENCE.sub("", path.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.split("#")[0]).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


@pytest.mark.parametrize("path", [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_command_mentioned_exists(path: Path) -> None:
    groups = {name.split()[0] for name in commands_of_the_cli()}
    assert commands_mentioned(path) - commands_of_the_cli() - groups == set()


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda p: p.name)
def test_the_readme_mentions_every_command(path: Path) -> None:
    assert commands_of_the_cli() - commands_mentioned(path) == set()


def test_both_readmes_have_the_same_sections_and_snippets() -> None:
    assert len(headings(ENGLISH)) == len(headings(CHINESE)) > 5
    assert snippets(ENGLISH, "python") == snippets(CHINESE, "python")
    assert len(snippets(ENGLISH, "bash")) == len(snippets(CHINESE, "bash"))


def test_make_targets_mentioned_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    for path in (ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md"):
        mentioned = set(re.findall(r"(?:^|`)make ([a-z]+)\b", path.read_text(encoding="utf-8"), re.M))
        assert mentioned <= targets, path.name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}
    table = re.findall(r"^\| ([\w, .-]+) \|", (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"), re.M)
    explained = {name.strip().lower() for cell in table for name in cell.split(",")}
    assert names - explained == set()
    assert explained - names - {"package", "---"} == set()


def test_every_python_snippet_compiles() -> None:
    documents = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for path in documents:
        for number, body in enumerate(snippets(path, "python")):
            compile(body, f"{path.name}, python snippet {number}", "exec")


def test_what_the_readme_imports_from_this_project_exists() -> None:
    imports = [line for body in snippets(ENGLISH, "python") for line in body.splitlines() if " import " in line]
    of_ours = [line for line in imports if line.startswith("from student_train")]
    assert of_ours
    for line in of_ours:
        exec(line, {})


def a_capture() -> Capture:
    """Two positions: head {7, 3} with all the mass; head {9} with half of it and four draws from the rest."""
    return Capture(
        head_lengths=np.array([2, 1], np.uint16),
        head_ids=np.array([7, 3, 9], np.int32),
        head_logprobs=np.log(np.array([0.75, 0.25, 0.5], np.float32)),
        rest_mass=np.array([[0.0, 0.0], [0.5, 0.625]], np.float32),
        tail_lengths=np.array([0, 2], np.uint16),
        tail_ids=np.array([4, 5], np.int32),
        tail_counts=np.array([3, 1], np.uint16),
        label_logprob=np.log(np.array([0.75, 0.375], np.float32)),
        label_rank=np.array([0, 1], np.uint32),
        entropy=np.array([0.562, 1.039], np.float32),
    )


def write_tiny_shards(folder: Path) -> None:
    header = Header(
        kind="captures",
        num_rows=1,
        vocab_size=16,
        vocab_rows=16,
        head_size=2,
        tail={"draws": 4},
        temperatures=(1.0, 2.0),
        fingerprints={"teacher": "t", "tokenizer": "k", "chat_template": "c", "corpus": "x"},
        max_length=8,
    )
    row = Row(
        row_id=0,
        input_ids=np.array([11, 7, 4], np.int32),
        segment_starts=np.array([0], np.int32),
        prompt_runs=np.zeros((0, 2), np.int32),
        scored=np.array([True, True]),
        capture=a_capture(),
    )
    plan = plan_shards(1, 1)
    writer = DatasetWriter(folder, header, plan)
    writer.write(plan[0], [row])
    writer.close()


@pytest.mark.parametrize(
    ("library", "shown"),
    [
        ("pyarrow", ["after [11] comes 7", "head [7, 3] [0.75 0.25]", "tail [4, 5] drawn [3, 1] times"]),
        ("polars", ["│ 11 ", "│ 0        ┆ 7        ┆ 0.75", "│ 1        ┆ 4        ┆ 3 "]),
    ],
)
def test_the_readme_opens_a_shard_without_this_project(library: str, shown: list[str], tmp_path: Path) -> None:
    (body,) = [s for s in snippets(ENGLISH, "python") if f"import {library}" in s]
    assert not re.search(r"(import|from) (shards|pipeline|teacher_dump|student_train)", body)
    write_tiny_shards(tmp_path / "dumps" / "quickstart" / "shards" / "train")
    done = subprocess.run([sys.executable, "-I", "-c", body], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in shown:
        assert text in done.stdout, f"{text!r} is missing in:\n{done.stdout}"


def test_no_text_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in tracked():
        text = text_of(path)
        if text is None or path == Path(__file__):
            continue
        found += [f"{path.relative_to(ROOT)}: {m}" for p in (REGISTRIES, MACHINE_PATH) for m in p.findall(text)]
    assert found == []


def test_the_quickstart_texts_are_the_ones_their_provenance_describes() -> None:
    provenance = (QUICKSTART / "PROVENANCE.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", provenance, re.M))
    texts = [p for p in QUICKSTART.iterdir() if p.name != "PROVENANCE.md"]
    assert stated == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in texts}
    assert sum(p.stat().st_size for p in texts) <= 200_000
    assert (QUICKSTART / "classical_chinese.txt").stat().st_size <= 10_000


def test_the_quickstart_dialogues_are_utterances_in_turn() -> None:
    dialogues = json.loads((QUICKSTART / "dialogues.json").read_text(encoding="utf-8"))
    for dialogue in dialogues:
        assert len(dialogue) in (2, 4, 6), dialogue
        assert all(isinstance(u, str) and u == u.strip() != "" for u in dialogue), dialogue
    chinese = [d for d in dialogues if re.search("[\u4e00-\u9fff]", d[0])]
    assert len(chinese) * 2 == len(dialogues) >= 48
