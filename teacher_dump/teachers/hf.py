"""The transformers backend: any causal LM that `AutoModelForCausalLM` loads, on a CPU, a GPU, or spread over GPUs.

Packed rows are un-packed: each segment is one sequence of its own, segments of similar length run together, padded on
the right. Under causal attention no real token sees padding to its right, and positions begin at 0, so this is exact
for every causal model (recurrent, sliding-window and mixture models included) without a 4-D mask or a kernel that
knows of segments. Variable-length attention over packed rows is a matter of speed and comes with the speed work.

The body runs first; the head only at scored positions, `chunk` at a time, so no [N, V] matrix of all N ever exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import UserError
from shards.job import Emit
from shards.rows import Capture, Row

from ..config import HFTeacher, PackagedTeacher
from ..extraction import Extracted, ExtractionSpec, NonFiniteLogitsError, extract, to_captures
from ..philox import Addresses, Key
from .base import NotFiniteError
from .hf_load import Loaded, load_model
from .segments import Segment, group_by_length, segments_of

Result = TypeVar("Result")

_CHUNK = 256
_CACHE_FRIENDLY = 1 << 19
"""Logits extracted at once on a CPU, so that the many passes over them stay in its caches (measured: half the time of
1 << 21)."""


def load(
    config: HFTeacher | PackagedTeacher, spec: ExtractionSpec, *, batch_tokens: int, emit: Emit
) -> TransformersTeacher:
    """Load model and fingerprint; see `hf_load.load_model` for the errors."""
    return TransformersTeacher(load_model(config, spec.vocab_size, emit), spec, batch_tokens=batch_tokens, emit=emit)


class TransformersTeacher:
    """See `base.Teacher`."""

    def __init__(self, loaded: Loaded, spec: ExtractionSpec, *, batch_tokens: int, emit: Emit) -> None:
        self.vocab_size = spec.vocab_size
        self.vocab_rows = loaded.vocab_rows
        self.max_length = loaded.max_length
        self.threads = torch.get_num_threads() if loaded.device.type == "cpu" else None
        self._loaded = loaded
        self._spec = spec
        self._emit = emit
        self._group_tokens = batch_tokens
        self._chunk = _CHUNK

    def fingerprint(self) -> dict[str, str]:
        return self._loaded.fingerprint

    def score(self, rows: Sequence[Row], key: Key) -> list[Capture]:
        return self._with_less_if_need_be(lambda: self._score(rows, key))

    def logprobs(self, row: Row, positions: NDArray[np.int64]) -> NDArray[Any]:
        scored = np.zeros_like(row.scored)
        scored[positions] = True
        chosen = dataclasses.replace(row, scored=scored)
        return self._with_less_if_need_be(lambda: self._logprobs(chosen))

    def _score(self, rows: Sequence[Row], key: Key) -> list[Capture]:
        counts = [row.num_scored for row in rows]
        labels = torch.from_numpy(np.concatenate([row.labels() for row in rows]).astype(np.int64))
        addresses = Addresses(
            key,
            torch.repeat_interleave(torch.tensor([row.row_id for row in rows]), torch.tensor(counts)),
            torch.from_numpy(np.concatenate([row.scored_positions() for row in rows])),
        )
        parts: list[Extracted] = []
        first = 0
        for features in self._features(rows).split(self._chunk):  # at least one chunk, which may be empty
            for logits in self._logits(features).split(self._at_once(features.device)):
                here = slice(first, first + len(logits))
                try:
                    device = logits.device
                    parts.append(extract(logits, labels[here].to(device), addresses[here].to(device), self._spec))
                except NonFiniteLogitsError as e:
                    bad = first + e.index
                    raise NotFiniteError(int(addresses.row_ids[bad]), int(addresses.positions[bad])) from None
                first += len(logits)
        return to_captures(parts, counts)

    def _logprobs(self, row: Row) -> NDArray[Any]:
        chunks = self._features([row]).split(self._chunk)
        parts = [self._logits(chunk)[:, : self.vocab_size].float().log_softmax(-1).cpu() for chunk in chunks]
        return torch.cat(parts).numpy()

    def _features(self, rows: Sequence[Row]) -> Tensor:
        """[n, F] what the head takes at every scored position, in row order."""
        segments = list(segments_of(rows))
        features: Tensor | None = None
        for group in group_by_length(segments, self._group_tokens):
            out = self._loaded.body(_padded(group).to(self._loaded.device))  # [B, T, F]
            if features is None:
                features = out.new_empty((sum(len(s.scored) for s in segments), out.shape[-1]))
            for b, segment in enumerate(group):
                n = len(segment.scored)
                picked = out[b, torch.from_numpy(segment.scored).to(out.device)]
                features[segment.first_result : segment.first_result + n] = picked
        return torch.empty((0, 0)) if features is None else features

    def _at_once(self, device: torch.device) -> int:
        """Positions extracted in one go."""
        return max(1, _CACHE_FRIENDLY // self.vocab_rows) if device.type == "cpu" else self._chunk

    def _logits(self, features: Tensor) -> Tensor:
        """[n, vocab_rows]."""
        if len(features) == 0:
            return torch.empty((0, self.vocab_rows))
        return self._loaded.head(features)

    def _with_less_if_need_be(self, run: Callable[[], Result]) -> Result:
        while True:
            try:
                with torch.inference_mode():
                    return run()
            except torch.OutOfMemoryError:
                pass  # shrink outside: here the failed pass still holds its tensors
            self._shrink()

    def _shrink(self) -> None:
        """After the GPU ran out of memory: half as much at once from now on, said aloud."""
        if self._chunk == 1 and self._group_tokens == 1:
            raise UserError(
                "teacher: out of GPU memory with a single segment at a time; set teacher.device_map=auto to spread "
                "the model over several GPUs, or use a shorter prepare.max_length"
            )
        self._chunk = max(1, self._chunk // 2)
        self._group_tokens = max(1, self._group_tokens // 2)
        torch.cuda.empty_cache()
        self._emit(
            {
                "event": "warning",
                "text": f"out of GPU memory: going on with {self._chunk} positions and {self._group_tokens} tokens "
                "at once (last bits may differ from those of a run that never ran out)",
            }
        )


def _padded(group: Sequence[Segment]) -> Tensor:
    """int64 [B, T], zeros on the right."""
    ids = np.zeros((len(group), max(len(segment.tokens) for segment in group)), dtype=np.int64)
    for b, segment in enumerate(group):
        ids[b, : len(segment.tokens)] = segment.tokens
    return torch.from_numpy(ids)
