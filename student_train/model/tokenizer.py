"""The teacher's tokenizer as the student needs it: prompts in, text out, where to stop. Not a tokenizer of our own.

Text of a prompt never yields a control token, as in the corpus. transformers is imported on loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.errors import UserError

BROKEN = "\ufffd"


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
        if not self.template:
            raise UserError(f"{self.folder}: the tokenizer has no chat template; generate without --chat")
        for name in self.control:
            if name in text:
                raise UserError(
                    f"prompt: holds the control token {name}, which only the chat template writes; remove it"
                )
        options = {"enable_thinking": False} if "enable_thinking" in self.template else {}
        rendering = self.hf.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, **options
        )
        return list(self.hf.backend_tokenizer.encode(rendering, add_special_tokens=False).ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's eos and the usual end-of-turn and end-of-text tokens."""
        names = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")
        found = {self.control[n] for n in names if n in self.control}
        return frozenset(found | ({self.hf.eos_token_id} - {None}))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text piece by piece, never half a character; the pieces joined are the decoded text without a broken end."""
        pending: list[int] = []
        context = 0  # ids of `pending` whose text is already out; kept because a decoder looks at what comes before
        for i in ids:
            pending.append(i)
            before = self._decode(pending[:context])
            text = self._decode(pending)
            if len(text) > len(before) and not text.endswith(BROKEN):
                yield text[len(before) :]
                pending, context = pending[context:], len(pending) - context
        if text := self._decode(pending)[len(self._decode(pending[:context])) :].rstrip(BROKEN):
            yield text

    def _decode(self, ids: list[int]) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _is_control(text: str, template: str) -> bool:
    tag = re.fullmatch(r"<.*>|\[.*\]", text) is not None and text in template
    return tag or re.fullmatch(r"<\|.*\|>", text) is not None
