"""What a dataset is, apart from its rows: settings and fingerprints. The same header lies in the manifest and in every
shard, so one lost file still says which teacher, tokenizer and rules made it. Row ranges and hashes are in `manifest`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from .errors import ShardError
from .files import canonical_json

FORMAT_NAME = "minicodformer-shards"
FORMAT_VERSION = 1
Encoding = Literal["plain", "compact"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
DECODED_FROM = "decoded_from"
"""Key of `Header.extra` in a plain dataset that was compact before."""
OPTIONAL_COLUMNS = ("tail_logprobs", "logsumexp")
CORPUS_ID = "corpus_id"
"""The optional column that `merge` adds: which corpus of `Header.extra["corpora"]` a row_id belongs to."""
DERIVED = "derived"
"""Key of `Header.extra` in a dataset of chosen or merged rows: how it came about. Such rows keep their row_id."""


@dataclass(frozen=True)
class Header:
    """Settings that hold for every row. Two datasets with equal headers hold rows of the same kind and meaning."""

    kind: Literal["rows", "captures"]
    """`rows`: a prepared corpus; `captures`: the same rows with what the teacher said."""
    num_rows: int
    vocab_size: int
    """Real vocabulary rows: ids are below it."""
    vocab_rows: int
    """Rows of the teacher's embedding, padding included."""
    max_length: int
    """Tokens in a row, at most."""
    encoding: Encoding = "plain"
    """`compact` (captures only): a third to a half of the bytes, lossy within stated bounds."""
    head_size: int = 0
    """K: most likely ids kept at a position, at most (must-keep ids come on top)."""
    head_mass: float = 1.0
    """The head is the shortest prefix of the K with at least this mass; 1.0: always K."""
    must_keep: tuple[int, ...] = ()
    """Ids that every head contains."""
    tail: dict[str, Any] = field(default_factory=dict)
    """`{"draws": m}`, `{"draws_per_mass": m0}` (m = ceil(m0 * rest mass)) or empty: no draws."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures whose rest mass is stored, 1 first."""
    seed: int = 0
    threads: int | None = None
    """CPU threads of the teacher: byte identity is promised for equal counts only."""
    optional_columns: tuple[str, ...] = ()
    """Of `tail_logprobs`, `logsumexp`, `corpus_id`."""
    fingerprints: dict[str, Any] = field(default_factory=dict)
    """Keys teacher, tokenizer, chat_template, corpus; values: text or a dict of texts."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Free: the split's name, counts."""

    def __post_init__(self) -> None:
        assert self.kind in ("rows", "captures"), self.kind
        assert self.encoding == "plain" or self.kind == "captures", "only captures can be compact"
        assert self.num_rows >= 0
        assert 0 < self.vocab_size <= self.vocab_rows, (self.vocab_size, self.vocab_rows)
        assert self.temperatures[:1] == (1.0,), self.temperatures
        assert set(self.tail) <= {"draws", "draws_per_mass"}, self.tail
        assert set(self.optional_columns) <= {*OPTIONAL_COLUMNS, CORPUS_ID}, self.optional_columns

    @property
    def derived(self) -> bool:
        """Whether rows were chosen or merged, so that a row_id is not the row's index here."""
        return DERIVED in self.extra

    @property
    def coded(self) -> bool:
        """Whether the numbers went through the codes of the compact encoding."""
        return self.encoding == "compact" or self.extra.get(DECODED_FROM) == "compact"

    def with_encoding(self, encoding: Encoding) -> Header:
        """The header of a conversion: plain values that were codes once are marked, for `verify` to be lenient."""
        extra = {name: value for name, value in self.extra.items() if name != DECODED_FROM}
        if self.encoding == "compact" and encoding == "plain":
            extra[DECODED_FROM] = "compact"
        return replace(self, encoding=encoding, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: exactly what a manifest gives back."""
        values: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> Header:
        """The inverse of `to_json`.

        Raises:
            ShardError: a field is unknown or missing.
        """
        known = {f.name for f in fields(Header)}
        wrong = sorted(known ^ set(values))
        if wrong:
            raise ShardError(f"header: field '{wrong[0]}' is unknown or missing; the file is not of format version 1")
        if values["encoding"] not in ENCODINGS:
            raise ShardError(f"header: encoding '{values['encoding']}' is unknown; update the program")
        arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return Header(**arguments)

    def difference(self, other: Header) -> str | None:
        """Name and both values of the first field that differs, as `head_size: 8 against 16`; None when equal."""
        ours, theirs = self.to_json(), other.to_json()
        for name in ours:
            if ours[name] != theirs[name]:
                return f"{name}: {ours[name]!r} against {theirs[name]!r}"
        return None
