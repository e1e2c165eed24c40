"""The extraction op, plain twin: logits and labels -> head, rest mass, tail draws, label statistics, entropy.

This is the law that faster twins are held to. It is vectorised over positions and runs wherever torch runs; it is not
tuned for a GPU and wants fp32 logits of one chunk at a time, never of a whole corpus.

Order everywhere (head, cuts, ranks): value descending, id ascending on ties. Padded vocabulary rows (ids from
`vocab_size` on) are cut off before anything is computed. Sums over the vocabulary run in fp32 inside blocks of 256 ids
and in fp64 over the blocks; the mass outside the head is summed outside the head, so it is accurate where it is tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import UserError
from shards.rows import Capture

from .config import DumpConfig, TailDraws, TailPerMass
from .philox import Addresses

_BLOCK = 256
_DRAWS_AT_ONCE = 16_384
_FLOOR, _PADDING = -1e30, -2e30
"""Stand for -inf among logits minus their maximum, in the vocabulary and beyond: exp is 0 all the same, and 0 times
them is not NaN."""


class NonFiniteLogitsError(Exception):
    """A position's logits hold NaN or +inf. `index` counts inside the chunk."""

    def __init__(self, index: int) -> None:
        super().__init__(f"position {index} of the chunk has logits that are not finite")
        self.index = index


@dataclass(frozen=True)
class ExtractionSpec:
    """What to keep of every distribution; see `DumpConfig` for the meaning of the settings."""

    vocab_size: int
    head_size: int
    head_mass: float
    must_keep: tuple[int, ...]
    tail: TailDraws | TailPerMass
    temperatures: tuple[float, ...]
    tail_logprobs: bool
    logsumexp: bool

    @classmethod
    def of(cls, config: DumpConfig, vocab_size: int) -> ExtractionSpec:
        """Resolve the config for one vocabulary.

        Raises:
            UserError: a must-keep id that no token has.
        """
        for token_id in config.must_keep:
            if not 0 <= token_id < vocab_size:
                raise UserError(f"dump.must_keep: {token_id} is no token id; give ids from 0 to {vocab_size - 1}")
        return cls(
            vocab_size=vocab_size,
            head_size=config.head_size,
            head_mass=config.head_mass,
            must_keep=tuple(sorted(set(config.must_keep))),
            tail=config.tail,
            temperatures=config.temperatures,
            tail_logprobs=config.tail_logprobs,
            logsumexp=config.logsumexp,
        )


@dataclass(frozen=True, eq=False)
class Extracted:
    """The columns of a `Capture` for any N positions (C temperatures), and each position's dead-row mass."""

    head_lengths: NDArray[np.uint16]  # [N]
    head_ids: NDArray[np.int32]  # [sum head_lengths]
    head_logprobs: NDArray[np.float32]  # [sum head_lengths]
    rest_mass: NDArray[np.float32]  # [N, C]
    tail_lengths: NDArray[np.uint16]  # [N]
    tail_ids: NDArray[np.int32]  # [sum tail_lengths]
    tail_counts: NDArray[np.uint16]  # [sum tail_lengths]
    label_logprob: NDArray[np.float32]  # [N]
    label_rank: NDArray[np.uint32]  # [N]
    entropy: NDArray[np.float32]  # [N]
    tail_logprobs: NDArray[np.float32] | None  # [sum tail_lengths]
    logsumexp: NDArray[np.float32] | None  # [N]
    dead_row_mass: NDArray[np.float64]  # [N]


_HEAD_COLUMNS = ("head_ids", "head_logprobs")
_TAIL_COLUMNS = ("tail_ids", "tail_counts", "tail_logprobs")


def extract(logits: Tensor, labels: Tensor, addresses: Addresses, spec: ExtractionSpec) -> Extracted:
    """Reduce one chunk of logits to what is stored.

    Args:
        logits: [N, vocabulary rows >= spec.vocab_size], any float type.
        labels: int64 [N], the token after each position.
        addresses: of the N positions, for the uniforms of the tail draws.
        spec: what to keep.

    Raises:
        NonFiniteLogitsError: NaN or +inf among a position's logits.
    """
    V = spec.vocab_size
    below, top = _below_maximum(logits[:, :V])
    weights = below.exp()
    total = _block_sums(weights).sum(dim=-1)  # [N] fp64
    bad = ~total.isfinite()
    if bad.any():
        raise NonFiniteLogitsError(int(bad.nonzero()[0, 0]))
    log_total = total.log()
    work = weights * below
    entropy = log_total - _block_sums(work).sum(dim=-1) / total

    head_ids, head_lengths = _choose_head(below, log_total, spec)  # [N, W] padded with V, [N]
    inside = head_ids < V
    head_below = below.gather(1, head_ids)
    outside = weights.scatter_(1, head_ids, 0.0)
    outside_sums = _block_sums(outside)  # [N, blocks]
    rest = outside_sums.sum(dim=-1) / total
    tail_ids, tail_counts, tail_lengths = _draw_tail(outside, outside_sums, rest, addresses, spec)

    rests = [rest]
    for temperature in spec.temperatures[1:]:
        torch.div(below, temperature, out=work).exp_()
        rest_sum = _block_sums(work.scatter_(1, head_ids, 0.0)).sum(dim=-1)
        head_sum = (head_below.double() / temperature).exp().masked_fill(~inside, 0.0).sum(dim=-1)
        rests.append(rest_sum / (rest_sum + head_sum))

    normaliser = log_total + top
    label_below = below.gather(1, labels[:, None])
    tail_logprobs = None
    if spec.tail_logprobs:
        owners = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), tail_lengths)
        tail_logprobs = below[owners, tail_ids] - log_total[owners]
    return Extracted(
        head_lengths=_numpy(head_lengths, np.uint16),
        head_ids=_numpy(head_ids[inside], np.int32),
        head_logprobs=_numpy((head_below - log_total[:, None])[inside], np.float32),
        rest_mass=_numpy(torch.stack(rests, dim=-1), np.float32),
        tail_lengths=_numpy(tail_lengths, np.uint16),
        tail_ids=_numpy(tail_ids, np.int32),
        tail_counts=_numpy(tail_counts, np.uint16),
        label_logprob=_numpy(label_below[:, 0] - log_total, np.float32),
        label_rank=_numpy(_ranks(below, label_below, labels, work), np.uint32),
        entropy=_numpy(entropy.clamp(min=0.0), np.float32),
        tail_logprobs=None if tail_logprobs is None else _numpy(tail_logprobs, np.float32),
        logsumexp=_numpy(normaliser, np.float32) if spec.logsumexp else None,
        dead_row_mass=_numpy(_dead_mass(logits[:, V:], normaliser), np.float64),
    )


def to_captures(parts: list[Extracted], counts: list[int]) -> list[Capture]:
    """Join chunks and cut them at rows: `counts` scored positions each, in order."""
    optional = {"tail_logprobs", "logsumexp"}
    flat: dict[str, Any] = {}
    for name in (f.name for f in fields(Extracted)):
        pieces = [getattr(part, name) for part in parts]
        flat[name] = None if name in optional and pieces[0] is None else np.concatenate(pieces)
    assert len(flat["head_lengths"]) == sum(counts), (len(flat["head_lengths"]), counts)
    bounds = np.cumsum([0, *counts])
    bounds_of = {
        "head": _offsets(flat["head_lengths"])[bounds],
        "tail": _offsets(flat["tail_lengths"])[bounds],
        "position": bounds,
    }
    captures = []
    for i in range(len(counts)):
        columns: dict[str, Any] = {}
        for name, values in flat.items():
            kind = "head" if name in _HEAD_COLUMNS else "tail" if name in _TAIL_COLUMNS else "position"
            start, stop = bounds_of[kind][i : i + 2]
            columns[name] = None if values is None else values[start:stop]
        dead = columns.pop("dead_row_mass")
        captures.append(Capture(**columns, dead_row_mass=float(dead.mean()) if len(dead) else 0.0))
    return captures


def _choose_head(below: Tensor, log_total: Tensor, spec: ExtractionSpec) -> tuple[Tensor, Tensor]:
    """Head ids [N, W] in the stated order, padded with `vocab_size`, and their numbers [N]."""
    K = min(spec.head_size, spec.vocab_size)
    ids = _top_ids(below, K, spec.vocab_size)
    keep = torch.ones_like(ids, dtype=torch.bool)
    if spec.head_mass < 1.0 and K > 0:
        mass = (below.gather(1, ids) - log_total[:, None]).exp().cumsum(dim=1)
        length = (mass < spec.head_mass).sum(dim=1) + 1
        keep = torch.arange(K, device=ids.device) < length[:, None]
    if spec.must_keep:
        must = torch.tensor(spec.must_keep, device=ids.device).expand(len(ids), -1)
        known = ((must[:, :, None] == ids[:, None, :]) & keep[:, None, :]).any(dim=-1)
        ids, keep = torch.cat((ids, must), dim=1), torch.cat((keep, ~known), dim=1)
        by_order = _by_value_then_id(below.gather(1, ids), ids)
        ids, keep = ids.gather(1, by_order), keep.gather(1, by_order)
        kept_first = keep.int().argsort(dim=1, descending=True, stable=True)
        ids, keep = ids.gather(1, kept_first), keep.gather(1, kept_first)
    lengths = keep.sum(dim=1)
    width = int(lengths.max()) if lengths.numel() else 0
    return ids.masked_fill(~keep, spec.vocab_size)[:, :width], lengths


def _top_ids(below: Tensor, K: int, vocab_size: int) -> Tensor:
    """The K first ids [N, K] by (value descending, id ascending), also where torch.topk breaks ties at will."""
    if K == 0:
        return below.new_zeros((len(below), 0), dtype=torch.int64)
    values, ids = _largest(below, min(K + 1, vocab_size))
    if vocab_size > K:
        torn = (values[:, K] == values[:, K - 1]).nonzero()[:, 0]
        values, ids = values[:, :K], ids[:, :K]
        if len(torn):
            rows = below[torn]
            cut = values[torn, K - 1 :]
            above, equal = rows > cut, rows == cut
            wanted = K - above.sum(dim=1, keepdim=True)
            taken = above | (equal & (equal.cumsum(dim=1) <= wanted))
            ids = ids.index_copy(0, torn, taken.nonzero()[:, 1].view(-1, K))
            values = below.gather(1, ids)
    return ids.gather(1, _by_value_then_id(values, ids))


def _largest(below: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk in two stages: k values lie in at most k blocks, and those are the ones with the largest maxima."""
    N, blocks = len(below), below.shape[1] // _BLOCK
    if 4 * k > blocks:
        return below.topk(k, dim=1)
    tiles = below.view(N, blocks, _BLOCK)
    block = tiles.amax(dim=2).topk(k, dim=1).indices  # [N, k]
    candidates = tiles[torch.arange(N, device=below.device)[:, None], block].flatten(1)  # [N, k * 256]
    values, place = candidates.topk(k, dim=1)
    return values, block.gather(1, place // _BLOCK) * _BLOCK + place % _BLOCK


def _by_value_then_id(values: Tensor, ids: Tensor) -> Tensor:
    """The permutation [N, W] that sorts by (value descending, id ascending)."""
    by_id = ids.argsort(dim=1, stable=True)
    by_value = values.gather(1, by_id).argsort(dim=1, descending=True, stable=True)
    return by_id.gather(1, by_value)


def _draw_tail(
    outside: Tensor, sums: Tensor, rest: Tensor, addresses: Addresses, spec: ExtractionSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws with replacement from `outside` [N, blocks * 256], as unique ids ascending, counts, and numbers [N]."""
    match spec.tail:
        case TailDraws(draws=draws):
            wanted = torch.full_like(rest, draws, dtype=torch.int64)
        case TailPerMass(draws_per_mass=per_mass):
            wanted = (rest * per_mass).ceil().long()
    wanted = wanted.masked_fill(rest <= 0, 0)
    most = int(wanted.max()) if wanted.numel() else 0
    upto = sums.cumsum(dim=1)
    target = _strictly_below(addresses.uniforms(most) * upto[:, -1:], upto[:, -1:])  # [N, most]
    block = torch.searchsorted(upto, target, right=True)
    owner, draw = (torch.arange(most, device=rest.device) < wanted[:, None]).nonzero(as_tuple=True)
    target, block = target[owner, draw], block[owner, draw]
    parts = zip(*(t.split(_DRAWS_AT_ONCE) for t in (owner, block, target)), strict=True)
    ids = torch.cat([_invert(outside, upto, *part) for part in parts])
    drawn, counts = torch.unique(owner * spec.vocab_size + ids, return_counts=True)  # sorted
    lengths = torch.bincount(drawn // spec.vocab_size, minlength=len(rest))
    return drawn % spec.vocab_size, counts, lengths


def _invert(outside: Tensor, upto: Tensor, owner: Tensor, block: Tensor, target: Tensor) -> Tensor:
    """Ids [D] at which the cumulative sum over ids first exceeds `target` [D]; never one of weight 0.

    `owner` [D] says at which of the N positions, `block` [D] in which block; `upto` [N, blocks] are the blocks' sums,
    cumulated. Inside a block the target is rescaled, so that roundings of the two levels cannot disagree.
    """
    before = torch.where(block > 0, upto[owner, (block - 1).clamp(min=0)], 0.0)
    share = (target - before) / (upto[owner, block] - before)
    tiles = outside.view(len(outside), upto.shape[1], _BLOCK)
    inner = tiles[owner, block].double().cumsum(dim=1)  # [D, 256]
    level = _strictly_below(share[:, None] * inner[:, -1:], inner[:, -1:])
    return block * _BLOCK + torch.searchsorted(inner, level, right=True)[:, 0]


def _strictly_below(value: Tensor, bound: Tensor) -> Tensor:
    """Rounding may lift u * total to total itself; an inverse then points past the end."""
    return torch.minimum(value, torch.nextafter(bound, torch.zeros_like(bound)))


def _ranks(below: Tensor, label_below: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
    """How many ids come before the label [N]. `flags`, shaped like `below`, is scratch.

    Comparing into floats lets the sum run four times as fast as over bools, and exactly: counts are below 2^24.
    """
    ahead = torch.gt(below, label_below, out=flags).sum(dim=1).long()
    level = torch.ge(below, label_below, out=flags).sum(dim=1).long()
    tied = (level - ahead > 1).nonzero()[:, 0]
    if len(tied):
        ids = torch.arange(below.shape[1], device=below.device)
        equal = (below[tied] == label_below[tied]) & (ids < labels[tied, None])
        ahead = ahead.index_add(0, tied, equal.sum(dim=1))
    return ahead


def _dead_mass(dead: Tensor, normaliser: Tensor) -> Tensor:
    """Share [N] that padded rows would take if they were let in."""
    if dead.shape[1] == 0:
        return torch.zeros_like(normaliser)
    return torch.sigmoid(dead.double().logsumexp(dim=1) - normaliser)


def _below_maximum(real: Tensor) -> tuple[Tensor, Tensor]:
    """Logits minus their maximum, fp32 [N, blocks * 256], and the maximum [N].

    Beyond the vocabulary stands `_PADDING` up to whole blocks, at least once: the place that padding ids point to.
    """
    N, V = real.shape
    below = real.new_empty((N, (V // _BLOCK + 1) * _BLOCK), dtype=torch.float32)
    below[:, :V] = real
    below[:, V:] = _PADDING
    top = below[:, :V].amax(dim=1, keepdim=True)
    below[:, :V].sub_(top).clamp_(min=_FLOOR)
    return below, top[:, 0]


def _block_sums(padded: Tensor) -> Tensor:
    """[N, blocks] fp64. The order of additions depends on no batch size, hence equal logits give equal draws."""
    return padded.view(len(padded), padded.shape[1] // _BLOCK, _BLOCK).sum(dim=2).double()


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _numpy(tensor: Tensor, dtype: Any) -> NDArray[Any]:
    return tensor.cpu().numpy().astype(dtype)
