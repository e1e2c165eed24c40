"""A tokenizer together with what the corpus needs to know of it: its control tokens, its fingerprint, bytes a token.

Not a tokenizer of our own: everything is asked from the files that the teacher ships. transformers is imported
inside `load_tokenizer`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.files import digest
from shards.job import Emit

from .packaged import ensure_packaged_teacher, package_of

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(name: str, emit: Emit, revision: str | None = None) -> CorpusTokenizer:
    """Load by packaged teacher's name, folder, GGUF file, or hub name (at a revision).

    Raises:
        UserError: no tokenizer there, or one without a `tokenizers` backend.
    """
    from transformers import AutoTokenizer

    folder: str | Path = name
    if package_of(name):
        folder = ensure_packaged_teacher(name, emit)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "revision": revision or "main"}
    if Path(name).is_file():  # a GGUF file carries its tokenizer
        source = {"pretrained_model_name_or_path": Path(name).parent, "gguf_file": Path(name).name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as e:  # noqa: BLE001  transformers raises a dozen kinds, all meaning "not loadable"
        first = str(e).strip().splitlines()[0].rstrip(" :") if str(e).strip() else type(e).__name__
        raise UserError(
            f"{name}: no tokenizer could be loaded ({first}); give a folder with tokenizer.json, or a hub name that "
            "is reachable from here (prepare.tokenizer)"
        ) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{name}: the tokenizer has no tokenizer.json form, which the corpus needs; convert it first")
    return CorpusTokenizer(tokenizer, name)


class CorpusTokenizer:
    """A loaded tokenizer; `hf` is the transformers object."""

    def __init__(self, hf: Any, name: str) -> None:
        from tokenizers import Tokenizer

        self.hf = hf
        self.name = name
        self._exact = hf.backend_tokenizer
        self._exact.no_truncation()  # settings left over from calls; no part of the tokenizer
        self._exact.no_padding()
        self._spec: dict[str, Any] = json.loads(self._exact.to_str())
        added = [t | {"special": t["special"] or t["content"] in self.control} for t in self._spec["added_tokens"]]
        self._plain = Tokenizer.from_str(json.dumps(self._spec | {"added_tokens": added}))
        self._plain.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Ids of trusted text: control tokens written in it are recognised; nothing is put in front or behind."""
        return self._exact.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of corpus text: `<|im_end|>` and its like are split into ordinary tokens."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        matches = list(self.control_pattern.finditer(text)) if self.control_pattern else []
        if not matches or self._control_ids.isdisjoint(ids):
            return ids
        # A unigram model may know the token's text as a piece of its own: cut inside it.
        cuts = [0, *(m.start() + 1 for m in matches), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        return [i for piece in pieces for i in self._plain.encode(piece, add_special_tokens=False).ids]

    @cached_property
    def control(self) -> dict[str, int]:
        """Text -> id of the tokens that only the template and we may write, never a corpus.

        These are the tokens flagged special, those of the form `<|...|>`, and tags that the chat template writes
        (Qwen3 does not flag `<think>` or `<tool_call>`).
        """
        template = self.chat_template or ""
        return {
            t["content"]: t["id"]
            for t in self._spec["added_tokens"]
            if t["special"]
            or re.fullmatch(r"<\|.*\|>", t["content"])
            or (re.fullmatch(r"<.*>|\[.*\]", t["content"]) and t["content"] in template)
        }

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    @cached_property
    def control_pattern(self) -> re.Pattern[str] | None:
        """Matches any control token, the longest first; None when there is none."""
        names = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja source; None where the tokenizer has none."""
        template = getattr(self.hf, "chat_template", None)
        return template if isinstance(template, str) and template else None

    @cached_property
    def vocab_size(self) -> int:
        """Real rows: one past the largest id that has a token (Qwen3: 151,669)."""
        return max(self.hf.get_vocab().values()) + 1

    @cached_property
    def separator(self) -> int:
        """The id that ends a plain document: `<|endoftext|>` where there is one, else the end-of-sequence token."""
        found = self.control.get("<|endoftext|>", self.hf.eos_token_id)
        if found is None:
            raise UserError(f"{self.name}: the tokenizer has neither <|endoftext|> nor an eos token; set eos_token")
        return int(found)

    @cached_property
    def prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of every text (Llama: bos; most: nothing)."""
        marked = self._exact.encode("a", add_special_tokens=True).ids
        bare = self._exact.encode("a", add_special_tokens=False).ids
        for start in range(len(marked) - len(bare) + 1):
            if marked[start : start + len(bare)] == bare:
                return marked[:start]
        return []

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical tokenizer.json: equal for tokenizers that encode equally."""
        return digest(self._spec)

    @property
    def template_fingerprint(self) -> str:
        """sha256 of the chat template; "" where there is none."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest() if self.chat_template else ""

    @cached_property
    def byte_lengths(self) -> NDArray[np.int32]:
        """[vocab_size] UTF-8 bytes of text that each token stands for; control tokens stand for none."""
        byte_level = '"ByteLevel"' in json.dumps(self._spec["decoder"])
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, i in self.hf.get_vocab().items():
            if byte_level:  # one character of the vocabulary's alphabet a byte
                lengths[i] = len(token)
            elif _BYTE_TOKEN.fullmatch(token):
                lengths[i] = 1
            else:
                lengths[i] = len(token.replace("▁", " ").encode())
        for added in self._spec["added_tokens"]:
            lengths[added["id"]] = 0 if added["content"] in self.control else len(added["content"].encode())
        return lengths
