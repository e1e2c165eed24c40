"""What one corpus record may look like, and the two things it can become: a text or a conversation.

Not a reader (`formats.py` finds the records) and not a renderer (`render.py` makes tokens of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from shards.errors import UserError

Role = Literal["system", "user", "assistant"]

_ROLES = ("system", "user", "assistant")
_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_WANTED = (
    'wanted {"text": ...}, {"prompt": ..., "response": ...}, {"messages": [{"role": ..., "content": ...}]} '
    "or a list of utterances"
)


@dataclass(frozen=True)
class Message:
    """One turn. `reasoning` is what an assistant thought before it spoke (Qwen3's `reasoning_content`)."""

    role: Role
    content: str
    reasoning: str | None = None


@dataclass(frozen=True)
class TextRecord:
    """A plain document."""

    place: str
    """`file:line` or `file: record n`, for messages."""
    source: str
    """File stem."""
    text: str


@dataclass(frozen=True)
class ChatRecord:
    """A conversation that ends with the assistant; empty where the assistant never speaks."""

    place: str
    source: str
    messages: tuple[Message, ...]


Record = TextRecord | ChatRecord


def parse_record(value: Any, place: str, source: str) -> Record:
    """One decoded JSON value -> a record; keys that are not asked for are ignored.

    Raises:
        UserError: no known shape, a wrong type, or text that is not valid Unicode.
    """
    if isinstance(value, list):
        return _from_utterances(value, place, source)
    if not isinstance(value, dict):
        raise UserError(f"{place}: the record is {_kind(value)}, {_WANTED}")
    if "messages" in value:
        return _from_messages(value["messages"], place, source)
    if "text" in value:
        return TextRecord(place, source, _text(value["text"], place, "text"))
    for ask, answer in _PAIRS:
        if ask in value and answer in value:
            prompt = _text(value[ask], place, ask)
            if ask == "instruction" and value.get("input"):  # the Alpaca form: what the instruction is about
                prompt += "\n\n" + _text(value["input"], place, "input")
            turns = (Message("user", prompt), Message("assistant", _text(value[answer], place, answer)))
            return ChatRecord(place, source, _until_last_answer(turns))
    keys = ", ".join(map(repr, list(value)[:8])) or "no keys"
    raise UserError(f"{place}: the record has {keys}; {_WANTED}")


def _from_utterances(value: list[Any], place: str, source: str) -> ChatRecord:
    """["你好", "你好！", ...]: user and assistant in turn, the user first."""
    turns = tuple(
        Message("assistant" if i % 2 else "user", _text(utterance, place, f"utterance {i + 1}"))
        for i, utterance in enumerate(value)
    )
    return ChatRecord(place, source, _until_last_answer(turns))


def _from_messages(value: Any, place: str, source: str) -> ChatRecord:
    if not isinstance(value, list):
        raise UserError(f"{place}: 'messages' is {_kind(value)}, wanted a list of {{role, content}}")
    turns = []
    for i, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise UserError(f"{place}: message {i} is {_kind(message)}, wanted {{role, content}}")
        role = message.get("role")
        if role not in _ROLES:
            raise UserError(f"{place}: message {i} has role {role!r}, wanted one of {', '.join(_ROLES)}")
        content = _text(message.get("content"), place, f"content of message {i}")
        reasoning = message.get("reasoning_content")
        if reasoning is not None:
            reasoning = _text(reasoning, place, f"reasoning_content of message {i}")
        turns.append(Message(role, content, reasoning))
    return ChatRecord(place, source, _until_last_answer(tuple(turns)))


def _until_last_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Without what follows the last assistant turn that answers something: nothing there is a label."""
    last = max((i for i, m in enumerate(turns) if i and m.role == "assistant" and m.content.strip()), default=-1)
    return turns[: last + 1]


def _text(value: Any, place: str, what: str) -> str:
    """`value` as text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{place}: {what} is {_kind(value)}, wanted a string")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise UserError(
            f"{place}: {what} holds the lone surrogate \\u{ord(value[e.start]):04x}, which is no character; remove it"
        ) from None
    return value


def _kind(value: Any) -> str:
    """A short name of a wrong value: its JSON type and its beginning."""
    match value:
        case None:
            return "null or missing"
        case bool() | int() | float():
            return f"the {'truth value' if isinstance(value, bool) else 'number'} {value}"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__
