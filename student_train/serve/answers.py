"""The JSON of answers, whole and in chunks, for the two endpoints."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from ..model.tokenizer import StudentTokenizer
from ..sampling import Picked
from .choices import Choices, Piece, chat_logprobs, completion_logprobs


class Answer:
    """Base of both; subclasses say what a choice looks like."""

    prefix, whole_object, chunk_object = "", "", ""

    def __init__(
        self,
        model: str,
        choices: Choices,
        tokenizer: StudentTokenizer,
        logprobs: bool,
        prompt_tokens: int,
        include_usage: bool,
    ) -> None:
        self.choices, self.tokenizer, self.logprobs = choices, tokenizer, logprobs
        self._include_usage, self._prompt_tokens = include_usage, prompt_tokens
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._texts = [""] * len(choices.jobs)

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens, self.choices.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def whole(self) -> dict[str, Any]:
        """Raises ApiError when a row fails."""
        tokens: list[list[Picked]] = [[] for _ in self._texts]
        finish: list[str | None] = [None] * len(self._texts)
        async for piece in self.choices.pieces():
            self._texts[piece.index] += piece.text
            if piece.token is not None:
                tokens[piece.index].append(piece.token)
            finish[piece.index] = piece.finish
        choices = [
            {"index": i, **self._content(text), "logprobs": self._logprobs(own, 0), "finish_reason": end}
            for i, (text, own, end) in enumerate(zip(self._texts, tokens, finish, strict=True))
        ]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Raises ApiError when a row fails."""
        extra: dict[str, Any] = {"usage": None} if self._include_usage else {}
        head = {**self._head, "object": self.chunk_object}
        for first in self._openings():
            yield {**head, "choices": [first], **extra}
        async for piece in self.choices.pieces():
            if piece.text or piece.finish or (self.logprobs and piece.token is not None):
                yield {**head, "choices": [self._chunk(piece)], **extra}
            self._texts[piece.index] += piece.text
        if self._include_usage:
            yield {**head, "choices": [], "usage": self.usage}

    def _chunk(self, piece: Piece) -> dict[str, Any]:
        tokens = [piece.token] if piece.token is not None else []
        logprobs = self._logprobs(tokens, len(self._texts[piece.index])) if tokens else None
        return {"index": piece.index, **self._delta(piece), "logprobs": logprobs, "finish_reason": piece.finish}

    def _openings(self) -> list[dict[str, Any]]:
        return []

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, tokens: list[Picked], offset: int) -> dict[str, Any] | None:
        raise NotImplementedError


class CompletionAnswer(Answer):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _logprobs(self, tokens: list[Picked], offset: int) -> dict[str, Any] | None:
        return completion_logprobs(self.tokenizer, tokens, offset) if self.logprobs else None


class ChatAnswer(Answer):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _openings(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(len(self._texts))]

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {"delta": {"content": piece.text} if piece.text else {}}

    def _logprobs(self, tokens: list[Picked], _: int) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, tokens) if self.logprobs else None
