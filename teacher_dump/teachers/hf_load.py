"""Loading a transformers causal LM as body and head, with its fingerprint. Scoring is in `hf`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import UserError
from shards.files import digest, sha256_file
from shards.job import Emit

from ..config import HFTeacher, PackagedTeacher
from ..heartbeat import heartbeat
from ..packaged import teacher_folder

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
_PLACE_KEYS = ("_name_or_path", "_commit_hash", "transformers_version")
"""Of config.json: they say where and when, not what."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model cut where hidden states become logits."""

    body: Callable[[Tensor], Tensor]
    """int64 [B, T] -> [B, T, F]"""
    head: Callable[[Tensor], Tensor]
    """[n, F] -> logits [n, vocab_rows]"""
    vocab_rows: int
    max_length: int | None
    device: torch.device
    """Where input ids go and features come from."""
    fingerprint: dict[str, str]


def load_model(config: HFTeacher | PackagedTeacher, vocab_size: int, emit: Emit) -> Loaded:
    """Load weights, check them against the corpus' vocabulary, fingerprint the files.

    Raises:
        UserError: not loadable, weights missing from the files, or fewer vocabulary rows than the corpus has tokens.
    """
    source = teacher_folder(config, emit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(config.dtype, device)
    with heartbeat(emit, "dump", f"loading the teacher {source}"):
        model = _pretrained(source, config, dtype)
        spread = isinstance(config, HFTeacher) and config.device_map == "auto"
        if not spread:
            model.to(device)
        model.eval()
    vocab_rows = _vocab_rows(model)
    if vocab_size > vocab_rows:
        raise UserError(
            f"teacher.model: {source} has {vocab_rows} vocabulary rows, the corpus' tokenizer {vocab_size} tokens; "
            "prepare the corpus with this model's own tokenizer"
        )
    with heartbeat(emit, "dump", "hashing the teacher's files"):
        fingerprint = _fingerprint(source, config, model, dtype)
    body, head = _cut(model, vocab_size, emit)
    return Loaded(
        body=body,
        head=head,
        vocab_rows=vocab_rows,
        max_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        device=model.get_input_embeddings().weight.device,
        fingerprint=fingerprint,
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    match name:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case _:
            return torch.bfloat16 if device.type == "cuda" else torch.float32


def _pretrained(source: Path | str, config: HFTeacher | PackagedTeacher, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # the heartbeat already tells, in one line
    where: dict[str, Any] = {"pretrained_model_name_or_path": source}
    if isinstance(source, Path) and source.is_file():
        where = {
            "pretrained_model_name_or_path": source.parent,
            "gguf_file": source.name,
            "quantization_config": GgufConfig(dequantize=True),
        }
    if isinstance(config, HFTeacher):
        where |= {"revision": config.revision} if config.revision else {}
        where |= {"device_map": "auto"} if config.device_map == "auto" else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, output_loading_info=True)
    except torch.OutOfMemoryError:
        raise UserError(
            f"teacher.model: {source} does not fit the GPU; set teacher.device_map=auto to spread it over several"
        ) from None
    except Exception as e:  # noqa: BLE001  transformers raises a dozen kinds, all meaning "not loadable"
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"teacher.model: {source} could not be loaded ({first}); give a folder with config.json and safetensors, "
            "a GGUF file, or a hub name that is reachable from here"
        ) from None
    lost = sorted([*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])])
    if lost:
        raise UserError(
            f"teacher.model: {source} lacks {len(lost)} weights of its architecture ({lost[0]}, ...), they would be "
            "random; restore the weight files"
        )
    return model


def _vocab_rows(model: Any) -> int:
    output = model.get_output_embeddings()
    return int(output.weight.shape[0] if output is not None else model.config.get_text_config().vocab_size)


def _cut(model: Any, vocab_size: int, emit: Emit) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Body and head, if together they give what the whole model gives; else the whole model and an identity.

    Families differ in what they do between hidden states and logits, so the cut is tried rather than believed.
    """

    def whole(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    def body(ids: Tensor) -> Tensor:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    head = _head(model)
    device = model.get_input_embeddings().weight.device
    ids = (torch.arange(12, device=device) * 7 % vocab_size)[None]
    with torch.inference_mode():
        wanted = whole(ids)[0].float()
        try:
            got = head(body(ids)[0]).float()
        except (AttributeError, TypeError, RuntimeError):
            got = None
    scale = float(wanted.abs().max())
    if got is not None and got.shape == wanted.shape and torch.allclose(got, wanted, rtol=2e-2, atol=2e-3 * scale):
        return body, head
    emit(
        {
            "event": "note",
            "text": f"{type(model).__name__}: hidden states and head cannot be had apart; taking whole logits, which "
            "needs memory for batch_tokens x vocabulary",
        }
    )
    return whole, lambda logits: logits


def _head(model: Any) -> Callable[[Tensor], Tensor]:
    """The output matrix with the scale or cap that the config states (Cohere, Granite, Gemma)."""
    output = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits = output(hidden)
        if scale != 1.0:
            logits = logits * scale
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return head


def _fingerprint(
    source: Path | str, config: HFTeacher | PackagedTeacher, model: Any, dtype: torch.dtype
) -> dict[str, str]:
    import transformers

    settings = {k: v for k, v in model.config.to_diff_dict().items() if k not in _PLACE_KEYS}
    revision = config.revision if isinstance(config, HFTeacher) else None
    found = {
        "config": digest(_plain(settings)),
        "revision": getattr(model.config, "_commit_hash", None) or revision or "",
        "dtype": str(dtype).removeprefix("torch."),
        "backend": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    return found | {f"file {path.name}": sha256_file(path) for path in _weight_files(source, revision)}


def _weight_files(source: Path | str, revision: str | None) -> list[Path]:
    """The files that hold the weights, in name order; for a hub name those of the local snapshot."""
    if isinstance(source, str):
        from transformers.utils import cached_file

        source = Path(cached_file(source, "config.json", revision=revision)).parent
    if source.is_file():
        return [source]
    for suffix in _WEIGHT_SUFFIXES:
        if files := sorted(source.glob(f"*{suffix}")):
            return files
    return []


def _plain(value: Any) -> Any:
    """JSON values only: dtypes and the like become text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
