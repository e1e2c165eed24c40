"""Streaming readers: corpus files -> records with their place. One record in memory at a time (Parquet: one batch).

Suffixes: .jsonl, .jsonl.zst (one record a line), .json (a list of records), .txt (documents between lines of `---`),
.parquet, .arrow (one record a row, as file or stream; columns are the keys of `records.py`).
Not a tokenizer: everything here is checked before any tokenizer is loaded.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.errors import UserError

from .json_list import iterate_json_list
from .records import Record, TextRecord, parse_record

SUFFIXES = (".jsonl", ".jsonl.zst", ".json", ".txt", ".parquet", ".arrow")
_CHUNK = 1 << 20


def check_files(paths: Iterable[Path]) -> None:
    """The mistakes that need no reading: no input, a missing or empty file, an unknown suffix.

    Raises:
        UserError: naming the file.
    """
    paths = list(paths)
    if not paths:
        raise UserError(f"prepare.input: no corpus file given; name one or more of {', '.join(SUFFIXES)}")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file (prepare.input); check the name")
        if not path.is_file():
            raise UserError(f"{path}: not a file (prepare.input); name the files inside it")
        _suffix(path)
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; give a corpus with at least two samples")


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file, in order.

    Raises:
        UserError: place, value and remedy of the first record that cannot be used.
    """
    source = _stem(path)
    match _suffix(path):
        case ".txt":
            yield from _read_txt(path, source)
        case ".json":
            for place, value in iterate_json_list(path, _file_chunks(path)):
                yield parse_record(value, place, source)
        case ".jsonl":
            yield from _read_jsonl(path, source, _file_chunks(path))
        case ".jsonl.zst":
            yield from _read_jsonl(path, source, _zstd_chunks(path))
        case ".parquet":
            yield from _read_table(path, source, _parquet_batches(path))
        case _:
            yield from _read_table(path, source, _arrow_batches(path))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise UserError(f"{path}: suffix {path.suffix or '(none)'!r} is not a corpus format; use {', '.join(SUFFIXES)}")


def _stem(path: Path) -> str:
    return path.name[: -len(_suffix(path))]


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Decompressed chunks of all frames; a truncated file is an error, not an early end."""
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        for compressed in _file_chunks(path):
            while compressed:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                if out := frame.decompress(compressed):
                    yield out
                compressed = frame.unused_data
    except zstandard.ZstdError as e:
        raise UserError(f"{path}: not zstd data ({e}); compress the .jsonl again") from None
    if not frame.eof:
        raise UserError(f"{path}: the zstd data end in the middle; copy or compress the file again")


def _lines(path: Path, chunks: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end), decoded; only \\n (and \\r\\n) end a line."""
    pending: list[bytes] = []
    number = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            number += 1
            yield number, _decode(b"".join([*pending, piece]), path, number)
            pending = []
        pending.append(rest)
    if last := b"".join(pending):
        yield number + 1, _decode(last, path, number + 1)


def _decode(line: bytes, path: Path, number: int) -> str:
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as e:
        where = f"byte 0x{line[e.start]:02x} at column {e.start + 1}"
        raise UserError(f"{path}:{number}: not UTF-8 ({where}); convert the file to UTF-8") from None


def _read_jsonl(path: Path, source: str, chunks: Iterable[bytes]) -> Iterator[Record]:
    for number, line in _lines(path, chunks):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(
                f"{path}:{number}: not JSON ({e.msg} at column {e.colno}); mend or delete the line"
            ) from None
        except RecursionError:
            raise UserError(f"{path}:{number}: JSON nested too deeply; mend or delete the line") from None
        yield parse_record(value, f"{path}:{number}", source)


def _read_txt(path: Path, source: str) -> Iterator[Record]:
    """Blocks between lines that are `---` (spaces around it do not count); blank blocks are no documents."""
    block: list[str] = []
    start = 1
    for number, line in _lines(path, _file_chunks(path)):
        if line.strip() != "---":
            block.append(line)
            continue
        yield from _document(path, source, start, block)
        block, start = [], number + 1
    yield from _document(path, source, start, block)


def _document(path: Path, source: str, start: int, block: list[str]) -> Iterator[Record]:
    filled = [i for i, line in enumerate(block) if line.strip()]
    if filled:
        text = "\n".join(block[filled[0] : filled[-1] + 1])
        yield TextRecord(f"{path}:{start + filled[0]}", source, text)


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as f:
            yield from f.iter_batches(batch_size=1024)
    except pa.ArrowInvalid as e:
        raise UserError(f"{path}: not a readable Parquet file ({_first_line(e)}); write it again") from None


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Record batches of an Arrow IPC file, or of an IPC stream under the same suffix."""
    import pyarrow as pa

    with path.open("rb") as f:
        is_file = f.read(6) == b"ARROW1"
    try:
        with pa.memory_map(str(path)) as source:
            if is_file:
                reader = pa.ipc.open_file(source)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)
            else:
                yield from pa.ipc.open_stream(source)
    except (pa.ArrowInvalid, pa.ArrowSerializationError, OSError) as e:
        raise UserError(f"{path}: not a readable Arrow file or stream ({_first_line(e)}); write it again") from None


def _read_table(path: Path, source: str, batches: Iterable[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield parse_record(value, f"{path}: record {number}", source)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
