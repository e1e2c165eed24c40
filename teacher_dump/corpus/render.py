"""Records -> tokens with labels and prompt runs. Not a cutter: rows and their length come later (`pieces.py`).

Text of the corpus never yields a control token. Control tokens written in it are replaced by private-use characters
before the chat template sees them, and put back, split into ordinary tokens, when the rendering is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shards.errors import UserError

from ..tokenizers import CorpusTokenizer
from .records import ChatRecord, Message, TextRecord

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Rendered:
    """One sample before it is cut to length; T tokens."""

    tokens: list[int]
    labels: list[bool]  # [T] token i is a label that counts
    runs: list[tuple[int, int]]  # half-open ranges that arrive whole


def render_text(tokenizer: CorpusTokenizer, record: TextRecord) -> list[int]:
    """A plain document: its tokens and the separator, which is a label like any other."""
    return [*tokenizer.encode_plain(record.text), tokenizer.separator]


def render_chat(tokenizer: CorpusTokenizer, record: ChatRecord, *, enable_thinking: bool = False) -> list[Rendered]:
    """A conversation: only responses are labels, the end-of-turn token included.

    Every scored response follows exactly the tokens that generation would be given at that turn. Where the template
    only ever appends, that is one sample for the whole conversation, otherwise one sample a turn (Qwen3 renders
    earlier answers without their think block).

    Raises:
        UserError: no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{record.place}: a conversation, but the tokenizer {tokenizer.name} has no chat template; "
            "use text records or a tokenizer with one"
        )
    conversation = _Conversation(tokenizer, record, enable_thinking)
    turns = [i for i, m in enumerate(record.messages) if i and m.role == "assistant" and m.content.strip()]
    parts = [conversation.prompt_and_response(i) for i in turns]
    return _as_one(parts) or [
        Rendered(prompt + response, [False] * len(prompt) + [True] * len(response), [(0, len(prompt))])
        for prompt, response in parts
    ]


def _as_one(parts: Sequence[tuple[list[int], list[int]]]) -> list[Rendered]:
    """The conversation as one sample; nothing where some prompt does not begin with all that came before it."""
    tokens: list[int] = []
    labels: list[bool] = []
    runs: list[tuple[int, int]] = []
    for prompt, response in parts:
        if prompt[: len(tokens)] != tokens:
            return []
        runs.append((len(tokens), len(prompt)))
        labels += [False] * (len(prompt) - len(tokens)) + [True] * len(response)
        tokens = prompt + response
    return [Rendered(tokens, labels, runs)] if tokens else []


class _Conversation:
    """One record under the chat template, with control tokens in its texts neutralised."""

    def __init__(self, tokenizer: CorpusTokenizer, record: ChatRecord, enable_thinking: bool) -> None:
        self._tokenizer = tokenizer
        self._place = record.place
        template = tokenizer.chat_template or ""
        self._options = {"enable_thinking": enable_thinking} if "enable_thinking" in template else {}
        messages = record.messages
        if "reasoning_content" in template:
            messages = tuple(map(_part_thought, messages))
        texts = "".join(m.content + (m.reasoning or "") for m in messages)
        self._spare = (chr(c) for c in _PRIVATE_USE if chr(c) not in texts)
        self._mark = next(self._spare)
        self._hidden: dict[str, str] = {}
        self._messages = [self._neutral(m) for m in messages]

    def prompt_and_response(self, turn: int) -> tuple[list[int], list[int]]:
        """Ids that generation is given for the answer `messages[turn]`, and the answer's, end of turn included."""
        prompt = self._render(self._messages[:turn], add_generation_prompt=True)
        return self._encode(prompt), self._response(turn, prompt)

    def _response(self, turn: int, prompt: str) -> list[int]:
        whole = self._render(self._messages[: turn + 1])
        suffix = self._suffix(turn)
        content = self._messages[turn]["content"]
        # Where the template writes the answer otherwise than generation begins it, the bare answer follows the prompt.
        follows = whole.startswith(prompt) and whole.endswith(suffix) and len(whole) >= len(prompt) + len(suffix)
        answer = whole[len(prompt) : len(whole) - len(suffix)] if follows else content
        pattern = self._tokenizer.control_pattern
        end = pattern.search(suffix) if pattern else None
        if end:
            return self._encode(answer + suffix[: end.end()])
        eos = self._tokenizer.hf.eos_token_id
        if eos is None:
            name = self._tokenizer.name
            raise UserError(f"{name}: the chat template ends no turn and there is no eos token; set eos_token")
        return [*self._encode(answer), int(eos)]

    def _suffix(self, turn: int) -> str:
        """What the template writes after the answer."""
        message = self._messages[turn]
        marked = message | {"content": message["content"] + self._mark}
        return self._render([*self._messages[:turn], marked]).rpartition(self._mark)[2]

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._options
            )
        except TemplateError as e:
            raise UserError(
                f"{self._place}: the chat template of {self._tokenizer.name} refuses the conversation ({e}); "
                "mend its roles and their order"
            ) from None

    def _encode(self, rendering: str) -> list[int]:
        """Control tokens of the template become their ids, those of the corpus ordinary tokens."""
        pattern = self._tokenizer.control_pattern
        if not self._hidden or pattern is None:
            return self._tokenizer.encode(rendering)  # exactly what generation does
        ids: list[int] = []
        start = 0
        for match in pattern.finditer(rendering):
            ids += self._encode_text(rendering[start : match.start()])
            ids.append(self._tokenizer.control[match.group()])
            start = match.end()
        return ids + self._encode_text(rendering[start:])

    def _encode_text(self, text: str) -> list[int]:
        restored = "".join(self._hidden.get(character, character) for character in text)
        return self._tokenizer.encode_plain(restored) if restored else []

    def _neutral(self, message: Message) -> dict[str, Any]:
        neutral: dict[str, Any] = {"role": message.role, "content": self._hide(message.content)}
        if message.reasoning is not None:
            neutral["reasoning_content"] = self._hide(message.reasoning)
        return neutral

    def _hide(self, text: str) -> str:
        pattern = self._tokenizer.control_pattern
        return pattern.sub(self._stand_in, text) if pattern else text

    def _stand_in(self, match: re.Match[str]) -> str:
        character = next(self._spare)
        self._hidden[character] = match.group()
        return character


def _part_thought(message: Message) -> Message:
    """An answer written as `<think>...</think>...` -> reasoning and content, as the template itself would part it."""
    match = _THOUGHT.fullmatch(message.content) if message.role == "assistant" and message.reasoning is None else None
    if match is None:
        return message
    return replace(message, reasoning=match[1].strip("\n"), content=match[2].lstrip("\n"))
