"""A trained student as a folder: config.json, model.safetensors (each weight once), the tokenizer's files.

The wiring is not stored but sampled again from the config, and checked against the digest in config.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.errors import UserError
from shards.files import publish, read_json, write_json

from ..config import StudentConfig
from .lm import Student

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_NOT_TOKENIZER = {CONFIG, WEIGHTS, "README.md", "stage.json", "generation_config.json"}


def save_model(
    folder: Path,
    student: Student,
    tokenizer_source: Path | None,
    meta: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the folder; config.json comes last, so a folder with one is whole.

    `meta` is free JSON (teacher, steps, ..). Under ZeRO-3 call this where the parameters are gathered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    if tokenizer_source is not None:
        copy_tokenizer(tokenizer_source, folder)
    tensors = {name: x.detach().to("cpu", dtype).contiguous() for name, x in student.state_dict().items()}
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    publish(temporary, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "model_type": "minicodformer_ltc_ncp",
        "student": student.config.model_dump(mode="json"),
        "vocab_size": student.vocab_size,
        "vocab_rows": student.vocab_rows,
        "wiring_digest": student.wiring_digest,
        "meta": meta,
    }
    write_json(folder / CONFIG, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a format that this version reads.

    Raises:
        UserError: not a student's folder.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG} in it; give the `model` folder of a trained run, or an exported one")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "student" not in config:
        found = config.get("model_type", "unknown") if isinstance(config, dict) else "unknown"
        raise UserError(
            f"{folder / CONFIG}: not a student of format {FORMAT} (model_type {found!r}); "
            "give the `model` folder of a trained run"
        )
    return config


def load_model(folder: Path) -> Student:
    """The student in float32 on the CPU, in eval mode.

    Raises:
        UserError: no student there, weights missing or broken, or a wiring that is not the one it was trained with.
    """
    config = read_config(folder)
    try:
        student_config = StudentConfig.model_validate(config["student"])
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder / CONFIG}: student.{place}: {first['msg']}; train again or use the version that wrote it"
        ) from None
    student = Student(student_config, config["vocab_size"], config["vocab_rows"])
    if student.wiring_digest != config["wiring_digest"]:
        raise UserError(
            f"{folder / CONFIG}: wiring digest {config['wiring_digest'][:8]} but this config samples "
            f"{student.wiring_digest[:8]}, so the weights belong to other synapses; restore the folder or train again"
        )
    weights = folder / WEIGHTS
    try:
        student.load_state_dict(load_file(weights))
    except FileNotFoundError:
        raise UserError(f"{weights}: missing; restore the folder or train again") from None
    except (SafetensorError, RuntimeError) as e:
        reason = str(e).splitlines()[-1].strip()
        raise UserError(f"{weights}: does not fit {CONFIG} ({reason}); restore the folder or train again") from None
    return student.eval()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files (whatever is not a model's own) into `target`."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in _NOT_TOKENIZER and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
