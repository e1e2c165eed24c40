"""A JSON list of any size, one element at a time, with the line each element starts on. Not a general JSON reader."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.errors import UserError

_SPACE = " \t\r\n"
# An element cut by the end of the buffer fails at most this far before the cut (a literal, an escape);
# an error further away is an error of the file. Cut strings fail at their beginning and are told by their message.
_CUT_MARGIN = 16


class _Buffer:
    """Decoded text that has not been consumed yet, and where in the file it begins."""

    def __init__(self, path: Path, chunks: Iterable[bytes]) -> None:
        self.path = path
        self.text = ""
        self.position = 0
        self.line = 1
        self.ended = False
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def consume(self, end: int) -> None:
        """Move to `end`, counting lines."""
        self.line += self.text.count("\n", self.position, end)
        self.position = end

    def grow(self) -> None:
        """Forget what is consumed and read on: at least as much again as is kept, so that re-parsing stays linear."""
        kept = self.text[self.position :]
        pieces, wanted = [kept], max(len(kept), 1)
        while wanted > 0 and not self.ended:
            chunk = next(self._chunks, None)
            self.ended = chunk is None
            try:
                piece = self._decoder.decode(chunk or b"", final=self.ended)
            except UnicodeDecodeError as e:
                line = self.line + "".join(pieces).count("\n") + e.object[: e.start].count(b"\n")
                byte = e.object[e.start]
                raise UserError(
                    f"{self.path}:{line}: not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8"
                ) from None
            pieces.append(piece)
            wanted -= len(piece)
        self.text, self.position = "".join(pieces), 0

    def next_character(self) -> str:
        """The next character that is no white space, not consumed; "" at the end of the file."""
        while True:
            end = self.position
            while end < len(self.text) and self.text[end] in _SPACE:
                end += 1
            self.consume(end)
            if end < len(self.text):
                return self.text[end]
            if self.ended:
                return ""
            self.grow()


def iterate_json_list(path: Path, chunks: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """(place `file:line (record n)`, element) for each element of the top-level list.

    Raises:
        UserError: not JSON, not UTF-8, or no list at the top.
    """
    buffer = _Buffer(path, chunks)
    if (first := buffer.next_character()) != "[":
        found = "an object" if first == "{" else f"{first!r}" if first else "only white space"
        raise UserError(f"{path}:{buffer.line}: found {found}, wanted a list of records; wrap it in [ ] or use .jsonl")
    buffer.consume(buffer.position + 1)
    if buffer.next_character() != "]":
        yield from _elements(buffer)
    buffer.consume(buffer.position + 1)
    if character := buffer.next_character():
        raise UserError(f"{path}:{buffer.line}: {character!r} after the end of the list; delete it")


def _elements(buffer: _Buffer) -> Iterator[tuple[str, Any]]:
    """One element or more, with the commas between them; stops in front of the closing bracket."""
    number = 0
    while True:
        buffer.next_character()
        number += 1
        place = f"{buffer.path}:{buffer.line} (record {number})"
        yield place, _element(buffer)
        character = buffer.next_character()
        if character == "]":
            return
        if character != ",":
            raise UserError(f"{buffer.path}:{buffer.line}: not JSON ({_expected(character)}); mend the file there")
        buffer.consume(buffer.position + 1)


def _element(buffer: _Buffer) -> Any:
    """Parse and consume one element, reading on while it is cut by the end of the buffer."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.position)
        except json.JSONDecodeError as e:
            cut = e.msg.startswith("Unterminated") or e.pos >= len(buffer.text) - _CUT_MARGIN
            if cut and not buffer.ended:
                buffer.grow()
                continue
            line = buffer.line + buffer.text.count("\n", buffer.position, e.pos)
            raise UserError(f"{buffer.path}:{line}: not JSON ({e.msg}); mend the file there") from None
        except RecursionError:
            raise UserError(f"{buffer.path}:{buffer.line}: JSON nested too deeply; mend the file there") from None
        # A number at the very end of the buffer may go on; every other value ends with its own sign.
        if end == len(buffer.text) and not buffer.ended:
            buffer.grow()
            continue
        buffer.consume(end)
        return value


def _expected(character: str) -> str:
    return f"expected ',' or ']', found {character!r}" if character else "the file ends inside the list"
