"""Let a student write: prefill in parallel, then token by token with a state of fixed size. One sequence, no server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shards.errors import UserError
from shards.job import Emit

from .config import GenerateConfig, GenerateJob
from .model.files import load_model
from .model.lm import Student
from .model.tokenizer import StudentTokenizer


def run(job: GenerateJob, emit: Emit) -> None:
    """Events: `token` {text} as text comes, then one `result` {text, tokens, tokens_per_s}.

    Raises:
        UserError: no student or tokenizer there, an empty prompt, a tokenizer without chat template.
    """
    student = load_model(job.model).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = StudentTokenizer(job.model)
    prompt = tokenizer.chat(job.prompt) if job.chat else tokenizer.plain(job.prompt)
    text, count = [], 0

    def counted(ids: Iterator[int]) -> Iterator[int]:
        nonlocal count
        for i in ids:
            count += 1
            yield i

    ids = generate_ids(student, prompt, job.generate, tokenizer.stop_ids, prompt_is_run=job.chat)
    begin = time.monotonic()
    for piece in tokenizer.stream(counted(ids)):
        text.append(piece)
        emit({"event": "token", "text": piece})
    rate = count / max(time.monotonic() - begin, 1e-9)
    emit({"event": "result", "text": "".join(text), "tokens": count, "tokens_per_s": round(rate, 2)})


def generate_text(student: Student, tokenizer_folder: Path, prompt: str, max_new_tokens: int, seed: int = 0) -> str:
    """What the student writes after a plain prompt with the default sampling."""
    tokenizer = StudentTokenizer(tokenizer_folder)
    config = GenerateConfig(max_new_tokens=max_new_tokens, seed=seed)
    return "".join(tokenizer.stream(generate_ids(student, tokenizer.plain(prompt), config, tokenizer.stop_ids)))


@torch.no_grad()
def generate_ids(
    student: Student,
    prompt: Sequence[int],
    config: GenerateConfig,
    stop_ids: frozenset[int] = frozenset(),
    *,
    prompt_is_run: bool = False,
) -> Iterator[int]:
    """New ids until a stop id (not yielded) or `config.max_new_tokens`.

    `prompt_is_run`: the prompt arrives whole, so its tokens may see each other both ways if the student was trained so.

    Raises:
        UserError: an empty prompt, or one with ids that the student does not know.
    """
    if not prompt:
        raise UserError("prompt: empty, and a student goes on from something; give at least one character")
    if max(prompt) >= student.vocab_size:
        raise UserError(
            f"prompt: token {max(prompt)} of {student.vocab_size} known ones; use the tokenizer beside the student"
        )
    device = student.head_weight.device
    random = torch.Generator().manual_seed(config.seed)
    ids = torch.tensor([list(prompt)], device=device)
    runs = torch.zeros_like(ids) if prompt_is_run and student.config.prompt_runs else None
    hidden, state = student(ids, run_ids=runs)
    seen = torch.zeros(student.vocab_rows, dtype=torch.bool)
    seen[ids[0].cpu()] = True
    for _ in range(config.max_new_tokens):
        picked = pick(student.logits(hidden[0, -1]).cpu(), config, seen, random)
        if picked in stop_ids:
            return
        yield picked
        seen[picked] = True
        hidden, state = student(torch.tensor([[picked]], device=device), state=state)


def pick(logits: Tensor, config: GenerateConfig, seen: Tensor, random: torch.Generator) -> int:
    """One id from logits float32 [V] (dead rows -inf); `seen` [V] bool marks ids that the repetition penalty weakens.

    Order: penalty, temperature (0: the most likely, lowest id on ties), top-k, then the smallest set of mass `top_p`.
    """
    if config.repetition_penalty != 1.0:
        weakened = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(seen, weakened, logits)
    if config.temperature == 0:
        return int(logits.argmax())
    scaled, order = (logits / config.temperature).sort(descending=True, stable=True)
    if config.top_k:
        scaled, order = scaled[: config.top_k], order[: config.top_k]
    p = scaled.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p >= config.top_p, 0.0)  # mass before this id already reaches top_p
    return int(order[torch.multinomial(p, 1, generator=random)])
