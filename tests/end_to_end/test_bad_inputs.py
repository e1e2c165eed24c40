"""A user's mistake is answered by one line with value, place and remedy, and exit code 2; nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from harness import Finished, Project, child_environment

GOOD_LINE = json.dumps({"text": "A sentence that is long enough to be a document."})


@dataclass(frozen=True)
class Mistake:
    """`spoil` prepares the folder and returns the command; every word of `says` must be in the one line."""

    name: str
    spoil: Callable[[Project], list[str]]
    says: tuple[str, ...]


def corpus(name: str, content: str | bytes) -> Callable[[Project], list[str]]:
    """A run whose corpus is this one file."""

    def spoil(project: Project) -> list[str]:
        path = project.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["prepare", "tiny.yaml", f"prepare.input=[{name}]"]

    return spoil


def override(*overrides: str, verb: str = "run") -> Callable[[Project], list[str]]:
    return lambda _: [verb, "tiny.yaml", *overrides]


def broken_yaml(project: Project) -> list[str]:
    (project.folder / "broken.yaml").write_text("name: [tiny\ntrain: {", encoding="utf-8")
    return ["run", "broken.yaml"]


def list_config(project: Project) -> list[str]:
    (project.folder / "list.yaml").write_text("- name: tiny\n", encoding="utf-8")
    return ["run", "list.yaml"]


def init_over(project: Project) -> list[str]:
    return ["init", "tiny.yaml", "--data", "corpus.txt"]


def init_without_data(project: Project) -> list[str]:
    return ["init", "mine.yaml", "--data", "nowhere.txt"]


def generate_without_a_run(project: Project) -> list[str]:
    return ["generate", "--run", "runs/none", "--input", "hello"]


def foreign_model(project: Project) -> list[str]:
    folder = project.folder / "notamodel"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nonesuch"}', encoding="utf-8")
    return ["prepare", "tiny.yaml", f"teacher.model={folder}"]


def shards_of_nothing(project: Project) -> list[str]:
    (project.folder / "empty").mkdir()
    return ["shards", "verify", "empty"]


MISTAKES = [
    Mistake("empty_corpus", corpus("empty.jsonl", ""), ("empty.jsonl", "empty")),
    Mistake("bad_json_on_line_7", corpus("bad.jsonl", (GOOD_LINE + "\n") * 6 + '{"text": \n'), ("bad.jsonl:7", "JSON")),
    Mistake("record_without_text", corpus("keys.jsonl", GOOD_LINE + '\n{"txet": "x"}\n'), ("keys.jsonl:2", "txet")),
    Mistake("text_that_is_a_number", corpus("type.jsonl", GOOD_LINE + '\n{"text": 5}\n'), ("type.jsonl:2",)),
    Mistake("not_utf8", corpus("latin.txt", b"caf\xe9 au lait\n" * 20), ("latin.txt", "UTF-8")),
    Mistake("unknown_suffix", corpus("data.docx", "x"), ("data.docx", ".jsonl")),
    Mistake("one_sample_only", corpus("one.jsonl", GOOD_LINE + "\n"), ("1",)),
    Mistake("json_that_is_an_object", corpus("object.json", '{"text": "x"}'), ("object.json", "list")),
    Mistake("missing_corpus", override("prepare.input=[nowhere.txt]"), ("nowhere.txt",)),
    Mistake("no_corpus_given", override("prepare.input=[]"), ("prepare.input",)),
    Mistake("unknown_key", override("train.bacth_size=4"), ("train.bacth_size", "batch_size")),
    Mistake("wrong_type", override("train.steps=many"), ("train.steps", "many")),
    Mistake("out_of_range", override("dump.head_mass=1.5"), ("dump.head_mass", "1.5")),
    Mistake("unknown_teacher_kind", override("teacher.kind=gpt"), ("teacher", "gpt", "hf")),
    Mistake("override_without_value", override("train.steps"), ("train.steps", "=")),
    Mistake("first_temperature_is_not_one", override("dump.temperatures=[2.0]"), ("temperatures", "1.0")),
    Mistake("heads_do_not_divide", override("train.student.encoder.heads=5"), ("heads", "5")),
    Mistake("missing_config", lambda _: ["run", "nowhere.yaml"], ("nowhere.yaml",)),
    Mistake("broken_yaml", broken_yaml, ("broken.yaml",)),
    Mistake("config_that_is_a_list", list_config, ("list.yaml",)),
    Mistake("missing_teacher_folder", override("teacher.model=/no/such/model"), ("/no/such/model",)),
    Mistake("folder_that_is_no_model", foreign_model, ("notamodel",)),
    Mistake("init_would_overwrite", init_over, ("tiny.yaml", "exists")),
    Mistake("init_without_its_data", init_without_data, ("nowhere.txt",)),
    Mistake("generate_without_a_student", generate_without_a_run, ("runs/none",)),
    Mistake("verify_of_an_empty_folder", shards_of_nothing, ("empty", "dataset.json")),
]


def assert_one_helpful_line(finished: Finished, says: tuple[str, ...]) -> None:
    assert finished.code == 2, f"exit code {finished.code}\n{finished.output}"
    assert "Traceback" not in finished.output, finished.output
    lines = [line for line in finished.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, finished.output
    for word in says:
        assert word.lower() in lines[0].lower(), f"{word!r} is not in {lines[0]!r}"


def assert_nothing_half_written(project: Project) -> None:
    assert not list(project.folder.rglob("*.tmp"))
    assert not list(project.folder.rglob("dataset.json"))
    done = [json.loads(p.read_text())["done"] for p in project.folder.rglob("stage.json")]
    assert not any(done)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_a_mistake_gets_one_line_with_place_and_remedy(mistake: Mistake, project: Project) -> None:
    finished = project.call(*mistake.spoil(project))
    assert_one_helpful_line(finished, mistake.says)
    assert_nothing_half_written(project)


def in_private_mounts(project: Project, script: str) -> Finished:
    """Run a shell script in a mount namespace of its own, where small and read-only file systems can be made."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"private mount namespaces are not allowed here: {probe.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        cwd=project.folder,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return Finished(done.returncode, done.stdout)


def test_a_read_only_output_is_refused(project: Project) -> None:
    command = " ".join(project.command("dump", "tiny.yaml", "root=locked"))
    script = f"mkdir locked && mount -t tmpfs -o size=1m none locked && mount -o remount,ro locked && exec {command}"
    finished = in_private_mounts(project, script)
    assert_one_helpful_line(finished, ("locked", "read-only"))


def test_a_full_disk_keeps_whole_shards_and_the_same_command_finishes(project: Project) -> None:
    """The tmpfs is too small for the dump; after it grew, the same command completes it."""
    command = " ".join(project.command("dump", "tiny.yaml", "root=small"))
    script = f"""
        mkdir small && mount -t tmpfs -o size=1m none small
        {command}; echo "first exit $?"
        find small -name '*.tmp' | sed 's/^/leftover /'
        mount -o remount,size=200m small
        {command}; echo "second exit $?"
    """
    finished = in_private_mounts(project, script)
    assert "first exit 2" in finished.output, finished.output
    assert "no space left" in finished.output
    assert "leftover" not in finished.output
    assert "second exit 0" in finished.output, finished.output


def test_a_second_writer_is_refused_by_name(project: Project) -> None:
    from shards.files import folder_lock

    with folder_lock(project.folder / "dumps" / "tiny" / "corpus"):
        finished = project.call("prepare", "tiny.yaml")
    assert_one_helpful_line(finished, ("corpus", f"process {os.getpid()}"))


def test_a_tokenizer_larger_than_the_model_is_refused(project: Project, tiny_teacher_folder: Path) -> None:
    model = project.folder / "small_vocabulary"
    shutil.copytree(tiny_teacher_folder, model)
    config = json.loads((model / "config.json").read_text())
    config["vocab_size"] = 64
    (model / "config.json").write_text(json.dumps(config))
    finished = project.call("dump", "tiny.yaml", f"teacher.model={model}")
    assert_one_helpful_line(finished, ("64",))


def test_a_global_batch_that_does_not_divide_names_the_nearest(project: Project) -> None:
    finished = project.call("train", "tiny.yaml", "train.global_batch=6")
    assert_one_helpful_line(finished, ("global_batch", "6", "4", "8"))


def test_a_damaged_shard_is_refused_by_name_and_made_again_once_deleted(project: Project) -> None:
    assert project.call("dump", "tiny.yaml").code == 0
    whole = project.shard_bytes()
    shard = project.shards / "train" / "shard-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    finished = project.call("shards", "verify", str(project.shards / "train"))
    assert finished.code == 2, finished.output
    assert "shard-00001" in finished.output
    finished = project.call("train", "tiny.yaml")
    assert_one_helpful_line(finished, ("shard-00001", "delete"))
    shard.unlink()
    finished = project.call("dump", "tiny.yaml")
    assert finished.code == 0, finished.output
    assert project.shard_bytes() == whole


def test_every_config_key_with_a_typo_is_refused_with_its_path(project: Project) -> None:
    config = yaml.safe_load((project.folder / "tiny.yaml").read_text())
    for section in ("prepare", "dump", "train", "eval"):
        spoiled = config | {section: config[section] | {"sede": 1}}
        (project.folder / "spoiled.yaml").write_text(yaml.safe_dump(spoiled))
        assert_one_helpful_line(project.call("run", "spoiled.yaml"), (f"{section}.sede",))
