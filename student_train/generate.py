"""Let a student write: prefill in parallel, then token by token with a state of fixed size. No server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from shards.errors import UserError
from shards.job import Emit

from .batch import Batch, Written, check_prompt, held
from .config import GenerateConfig, GenerateJob
from .model.files import load_model
from .model.lm import Student
from .model.tokenizer import StudentTokenizer, TextStream
from .sampling import pick

__all__ = ["generate_batch", "generate_ids", "generate_text", "pick", "run"]


def run(job: GenerateJob, emit: Emit) -> None:
    """Events: `token` {text} as text comes, then one `result` with the whole text and how fast it came.

    Raises:
        UserError: no student or tokenizer there, an empty prompt, a tokenizer without chat template.
    """
    student = load_model(job.model).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = StudentTokenizer(job.model)
    prompt = tokenizer.chat(job.prompt) if job.chat else tokenizer.plain(job.prompt)
    stream, text, count = TextStream(tokenizer, job.generate.stop), [], 0
    ids = generate_ids(student, prompt, job.generate, tokenizer.stop_ids, prompt_is_run=job.chat)
    begin = first = time.monotonic()
    for i in ids:
        count += 1
        if count == 1:
            first = time.monotonic()
        if piece := stream.push(i):
            text.append(piece)
            emit({"event": "token", "text": piece})
        if stream.stopped:
            break
    if piece := stream.finish():
        text.append(piece)
        emit({"event": "token", "text": piece})
    end = time.monotonic()
    result = {
        "text": "".join(text),
        "tokens": count,
        "tokens_per_s": round(count / max(end - begin, 1e-9), 2),
        "prompt_tokens": len(prompt),
        "first_token_ms": round(1000 * (first - begin), 2),
        "ms_per_token": round(1000 * (end - first) / (count - 1), 3) if count > 1 else None,
    }
    emit({"event": "result", **result})


def generate_text(student: Student, tokenizer_folder: Path, prompt: str, max_new_tokens: int, seed: int = 0) -> str:
    """What the student writes after a plain prompt with the default sampling."""
    tokenizer = StudentTokenizer(tokenizer_folder)
    config = GenerateConfig(max_new_tokens=max_new_tokens, seed=seed)
    return "".join(tokenizer.stream(generate_ids(student, tokenizer.plain(prompt), config, tokenizer.stop_ids)))


def generate_ids(
    student: Student,
    prompt: Sequence[int],
    config: GenerateConfig,
    stop_ids: frozenset[int] = frozenset(),
    *,
    prompt_is_run: bool = False,
) -> Iterator[int]:
    """New ids until a stop id (not yielded) or `config.max_new_tokens`; `config.stop` is for those who see text.

    The weights must not change while this runs.
    `prompt_is_run`: the prompt arrives whole, so its tokens may see each other both ways if the student was trained so.

    Raises:
        UserError: an empty prompt, or one with ids that the student does not know.
    """
    check_prompt(student, prompt)
    row = Written(prompt, config, stop_ids, ((0, len(prompt)),) if prompt_is_run else ())
    batch = Batch(student)
    batch.add(row)
    with held(student):
        while row.end is None:
            for _, picked in batch.step():
                if row.end != "stop":
                    yield picked.id


def generate_batch(
    student: Student,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig | Sequence[GenerateConfig],
    stop_ids: frozenset[int] = frozenset(),
) -> list[list[int]]:
    """New ids after each of several prompts of any lengths, written together; stop ids are left out.

    One `config` for all, or one a prompt; a row's randomness comes from its own seed, whoever its neighbours are.

    Raises:
        UserError: an empty prompt, one with unknown ids, or a number of configs that is not the prompts'.
    """
    configs = [config] * len(prompts) if isinstance(config, GenerateConfig) else list(config)
    if len(configs) != len(prompts):
        raise UserError(f"config: {len(configs)} for {len(prompts)} prompts; give one, or one a prompt")
    batch = Batch(student)
    out: dict[Written, list[int]] = {}
    for prompt, own in zip(prompts, configs, strict=True):
        check_prompt(student, prompt)
        row = Written(prompt, own, stop_ids)
        batch.add(row)
        out[row] = []
    with held(student):
        while len(batch):
            for row, picked in batch.step():
                if row.end != "stop":
                    out[row].append(picked.id)
    return list(out.values())
