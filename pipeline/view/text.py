"""Token ids as text to look at: one piece a token, whatever bytes the token stops in the middle of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROKEN = "\ufffd"


class TokenText:
    """By the tokenizer.json beside a dataset; without one, or without the tokenizers package, ids as `#12`."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    @property
    def known(self) -> bool:
        """False where only ids can be shown."""
        return self._tokenizer is not None

    def whole(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row."""
        if self._tokenizer is None:
            return [" ".join(f"#{i}" for i in ids) for ids in rows]
        return list(self._tokenizer.decode_batch([list(ids) for ids in rows], skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One piece a token; joined they are the text. A character of several tokens stands with the last of them."""
        if self._tokenizer is None:
            return [f"#{i} " for i in ids]
        pieces: list[str] = []
        pending: list[int] = []
        context = 0  # ids of `pending` whose text is already out; kept because a decoder looks at what comes before
        for i in ids:
            pending.append(i)
            before, text = self._decode(pending[:context]), self._decode(pending)
            whole = len(text) > len(before) and not text.endswith(BROKEN)
            pieces.append(text[len(before) :] if whole else "")
            if whole:
                pending, context = pending[context:], len(pending) - context
            elif len(pending) - context > 8:  # no character is that long: broken text stays broken
                pieces[-1], pending, context = text[len(before) :], [], 0
        if pieces and pending[context:]:
            pieces[-1] = self._decode(pending)[len(self._decode(pending[:context])) :]
        return pieces

    def one(self, token: int) -> str:
        """A token by itself; bytes that are no text as `⟨e4 b8⟩`."""
        if self._tokenizer is None:
            return f"#{token}"
        text = self._decode([token])
        if BROKEN not in text:
            return text
        name = self._tokenizer.id_to_token(token) or ""
        if name and all(c in _BYTE_OF for c in name):
            return f"⟨{' '.join(f'{_BYTE_OF[c]:02x}' for c in name)}⟩"
        return name or f"#{token}"

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _byte_alphabet() -> dict[str, int]:
    """The letters of byte-level BPE (Radford et al. 2019): printable bytes stand for themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def text_beside(folder: Path) -> TokenText:
    """By the tokenizer that prepare or dump left beside the dataset in `folder`."""
    for place in (folder / "tokenizer", folder.parent / "tokenizer", folder.parent / "teacher" / "tokenizer"):
        if (place / "tokenizer.json").exists():
            try:
                from tokenizers import Tokenizer  # comes with the phases' extras; the base install shows ids
            except ImportError:
                break
            tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
            tokenizer.no_truncation()
            return TokenText(tokenizer)
    return TokenText(None)
