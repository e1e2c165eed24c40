"""Requests and errors in OpenAI's words: bytes in, checked models out. Nothing is generated here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..config import GenerateConfig

MAX_CHOICES = 64  # prompts x n of one request
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_IGNORED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# Parts of the API that a student does not have: only the value that changes nothing is taken.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0,)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "logit_bias": ({},),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Body(BaseModel):
    # Strict: "0.5" is not a number. extra: what is no part of the API is refused by name.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Ids = Annotated[list[int], Field(min_length=1)]


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(_Body):
    """What both endpoints share."""

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: str | Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(max_length=16)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("the body is not a JSON object")
        kept = {k: v for k, v in values.items() if k not in _IGNORED}
        for name, neutral in _NEUTRAL.items():
            if name in kept and (kept[name] is None or kept[name] in neutral):
                del kept[name]
            elif name in kept:
                raise ValueError(f"{name}: this server does not have it; leave it out")
        return kept

    def sampling(self, index: int, max_tokens: int, default_seed: int) -> GenerateConfig:
        """The settings of choice `index`; choices of one request differ in their seeds."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = default_seed if self.seed is None else self.seed
        return GenerateConfig(
            max_new_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-6),
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            stop=tuple(s for s in stop if s),
            seed=(seed + index) % (1 << 63),
        )


class CompletionBody(Sampled):
    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [p for p in self.prompt if not isinstance(p, int)]


class TextPart(_Body):
    type: Literal["text"]
    text: str


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: str | None = None

    @property
    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


B = TypeVar("B", bound=Sampled)


def parse_json(body: bytes) -> Any:
    """Raises ApiError: not UTF-8, not JSON, or nested beyond reason."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate in some string
    except UnicodeError:
        raise ApiError(400, "The body is not UTF-8 text; encode it as UTF-8.") from None
    except (ValueError, RecursionError) as e:
        raise ApiError(400, f"The body is not JSON that this server reads: {e}.") from None
    return value


def parse_body(kind: type[B], body: bytes) -> B:
    """Raises ApiError naming the first thing wrong."""
    value = parse_json(body)
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else None
        place = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            text = "unrecognized request argument"
        raise ApiError(400, f"{place}: {text}" if place else text, param=param) from None
