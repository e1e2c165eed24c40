"""The teacher's tokenizer as the student needs it: prompts in, text out, where to stop. Not a tokenizer of our own.

Text of a prompt never yields a control token, as in the corpus. transformers is imported on loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import UserError

BROKEN = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones themselves, the others from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class StudentTokenizer:
    """Loaded from the files beside a student; `hf` is the transformers object."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder holds no tokenizer."""
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer, PreTrainedConfig

        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder}: no tokenizer.json in it; give the folder that training or export wrote")
        self.folder = folder
        # An empty config, so that the student's config.json, which is not transformers', is not asked.
        self.hf: Any = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig())
        spec = json.loads(self.hf.backend_tokenizer.to_str())
        self._byte_level = '"ByteLevel"' in json.dumps(spec.get("decoder"))
        template = getattr(self.hf, "chat_template", None)
        self.template: str = template if isinstance(template, str) else ""
        self.control: dict[str, int] = {
            t["content"]: t["id"]
            for t in spec["added_tokens"]
            if t["special"] or _is_control(t["content"], self.template)
        }
        for token in spec["added_tokens"]:
            token["special"] |= token["content"] in self.control
        self._plain = Tokenizer.from_str(json.dumps(spec | {"truncation": None, "padding": None}))
        self._plain.encode_special_tokens = True

    def plain(self, text: str) -> list[int]:
        """Ids of a text to go on from; `<|im_end|>` and its like are split into ordinary tokens."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def chat(self, text: str) -> list[int]:
        """Ids of one user turn under the chat template, up to where the answer begins.

        Raises:
            UserError: no chat template, or a control token inside the text.
        """
        return self.conversation([{"role": "user", "content": text}])

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of several turns {role, content} under the chat template, up to where the next answer begins.

        Raises:
            UserError: no chat template, one that refuses these roles, or a control token inside a text.
        """
        from jinja2 import TemplateError

        if not self.template:
            raise UserError(f"{self.folder}: the tokenizer has no chat template; generate without --chat")
        for name in self.control:
            if any(name in m["content"] for m in messages):
                raise UserError(
                    f"prompt: holds the control token {name}, which only the chat template writes; remove it"
                )
        options = {"enable_thinking": False} if "enable_thinking" in self.template else {}
        try:
            rendering = self.hf.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True, **options
            )
        except TemplateError as e:
            raise UserError(f"messages: the chat template refuses them ({e}); mend the roles and their order") from None
        return list(self.hf.backend_tokenizer.encode(rendering, add_special_tokens=False).ids)

    def runs(self, messages: Sequence[Mapping[str, str]], ids: Sequence[int]) -> list[tuple[int, int]]:
        """Ranges of `ids` (the conversation) that arrived whole: all but the answers, as in the corpus."""
        runs: list[tuple[int, int]] = []
        begin = 0
        for i, message in enumerate(messages):
            if not i or message["role"] != "assistant":
                continue
            prompt = self.conversation(messages[:i])
            if list(ids[: len(prompt)]) != prompt:  # the template renders earlier answers otherwise than it began them
                return [(0, len(ids))]
            runs.append((begin, len(prompt)))
            end = next((k for k in range(len(prompt), len(ids)) if ids[k] in self.stop_ids), len(prompt))
            begin = end + 1
        return [*runs, (begin, len(ids))]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's eos and the usual end-of-turn and end-of-text tokens."""
        names = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")
        found = {self.control[n] for n in names if n in self.control}
        return frozenset(found | ({self.hf.eos_token_id} - {None}))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text piece by piece, never half a character; the pieces joined are the decoded text without a broken end."""
        stream = TextStream(self)
        for i in ids:
            if piece := stream.push(i):
                yield piece
        if piece := stream.finish():
            yield piece

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control tokens have none."""
        return self._decode(ids)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one token, also of part of a character; control tokens have their name."""
        name = str(self.hf.convert_ids_to_tokens(i) or "")
        if name in self.control:
            return name.encode()
        if all(c in _BYTE_OF for c in name) and self._byte_level:
            return bytes(_BYTE_OF[c] for c in name)
        return str(self.hf.decode([i], clean_up_tokenization_spaces=False)).encode()

    def _decode(self, ids: list[int]) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class TextStream:
    """Ids in, whole characters out, up to the first of some stop texts, which is left out."""

    def __init__(self, tokenizer: StudentTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._pending: list[int] = []
        self._context = 0  # ids of `_pending` whose text is out; kept because a decoder looks at what comes before
        self._held = ""  # text that may be the beginning of a stop text
        self.stopped = False

    def push(self, i: int) -> str:
        """The text that has become certain with one more id."""
        self._pending.append(i)
        before = self._tokenizer.decode(self._pending[: self._context])
        text = self._tokenizer.decode(self._pending)
        if len(text) <= len(before) or text.endswith(BROKEN):
            return ""
        self._pending, self._context = self._pending[self._context :], len(self._pending) - self._context
        return self._until_stop(text[len(before) :])

    def finish(self) -> str:
        """What is left when no id follows, without a broken end."""
        if self.stopped:
            return ""
        before = self._tokenizer.decode(self._pending[: self._context])
        rest = self._tokenizer.decode(self._pending)[len(before) :].rstrip(BROKEN)
        text = self._until_stop(rest) + self._held
        self._held = ""
        return text

    def _until_stop(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        for start in range(max(0, len(text) - max(map(len, self._stop), default=0) + 1), len(text)):
            if any(s.startswith(text[start:]) for s in self._stop):
                self._held = text[start:]
                return text[:start]
        return text


def _is_control(text: str, template: str) -> bool:
    tag = re.fullmatch(r"<.*>|\[.*\]", text) is not None and text in template
    return tag or re.fullmatch(r"<\|.*\|>", text) is not None
