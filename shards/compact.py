"""The compact encoding of captures: the logical columns of one batch <-> byte planes of codes.

`DECODING` travels in every compact file; it is all that a decoder needs. Arrow and rows are in `columns`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import codes, planes
from .errors import ShardError
from .header import Header
from .lists import Lists
from .rounding import round_mantissa

Array = NDArray[Any]

DECODING = (
    "Decode one record batch at a time, all rows of it together: lists of the rows, end to end.\n"
    "1. Planes. Columns X_0, X_1, ... of uint8 are the bytes of integers X = X_0 + 256 * X_1 + 65536 * X_2."
    " input_ids, head_lengths, tail_lengths, tail_counts and label_rank are these integers.\n"
    "2. Ids. id_order has values in the first row only. table = those, then every other id from 0 to"
    " header.vocab_size - 1, ascending. Cut head_ids by head_lengths (tail_ids by tail_lengths) into one list x a"
    " position: its ids are table[x_0], table[x_0 + x_1], table[x_0 + x_1 + x_2], ...\n"
    "3. Masses. rest_mass has one code c for each position and each of header.temperatures, position-major."
    " c = 0: 0 exactly. c = 65535: 1 exactly. Else 1 / (1 + exp(-(c - 32768) / 64)); the logit is off by at most"
    " 1/128, a logit above 32 reads as 32.\n"
    "4. Head log-probabilities. head_values goes with head_ids. With rest at T = 1:"
    " logprob_j = log(1 - rest) - log(sum over the head of exp(-value_i / 16)) - value_j / 16, where"
    " log(1 - rest) = -log(1 + exp((c - 32768) / 64)), or 0 for c = 0. Off by at most 1/16 + 1/128 nat; value 255"
    " means 15.9375 or more below the head's maximum.\n"
    "5. Nats. label_logprob = -c / 256, entropy = c / 256, tail_logprobs = -c / 256; c = 65535: infinite, 65534:"
    " 255.99 or more. Off by at most 1/512.\n"
    "6. Order. Sort each head by value, then id (that is most likely first), each tail by id with its tail_counts.\n"
    "7. All other columns are as their documentation says."
)

HEAD, TAIL = "head_ids", "tail_ids"


def plane_sizes(header: Header) -> dict[str, int]:
    """Stored column -> its number of planes; `id_order` and `head_values` are no logical columns."""
    ids = planes.num_planes(header.vocab_size - 1)
    sizes = {"input_ids": ids, "id_order": ids, "head_lengths": 2, HEAD: ids, "head_values": 1, "rest_mass": 2}
    sizes |= {"tail_lengths": 2, TAIL: ids, "tail_counts": 2, "label_logprob": 2, "label_rank": ids, "entropy": 2}
    return sizes | ({"tail_logprobs": 2} if "tail_logprobs" in header.optional_columns else {})


def encode(lists: dict[str, Lists], header: Header) -> dict[str, Lists]:
    """Logical list columns of one batch, float32 -> the stored ones. Lossy within the bounds of `DECODING`."""
    assert header.vocab_size <= 2**24, "compact holds ids below 2**24"
    given = {name: _rounded(column.values) for name, column in lists.items()}
    heads, tails = given["head_lengths"].astype(np.int64), given["tail_lengths"].astype(np.int64)
    first = planes.frequent_first(np.concatenate([given[HEAD], given[TAIL]]), header.vocab_size)
    places = planes.places_of(planes.order_table(first, header.vocab_size))
    rows = len(lists["input_ids"].offsets) - 1
    stored = {name: Lists(lists[name].offsets, given[name]) for name in lists}
    stored["id_order"] = Lists(np.concatenate([[0], np.full(rows, len(first))]), first)

    by_place = planes.sort_lists(places[given[HEAD]], heads)
    values = codes.encode_values(given["head_logprobs"], np.repeat(codes.maxima(given["head_logprobs"], heads), heads))
    stored[HEAD] = Lists(lists[HEAD].offsets, planes.differences(places[given[HEAD]][by_place], heads))
    stored["head_values"] = Lists(lists[HEAD].offsets, values[by_place])
    stored["rest_mass"] = Lists(lists["rest_mass"].offsets, _mass_codes(given, heads, len(header.temperatures)))

    by_place = planes.sort_lists(places[given[TAIL]], tails)
    stored[TAIL] = Lists(lists[TAIL].offsets, planes.differences(places[given[TAIL]][by_place], tails))
    stored["tail_counts"] = Lists(lists[TAIL].offsets, given["tail_counts"][by_place])
    stored["label_logprob"] = Lists(lists["label_logprob"].offsets, codes.encode_nats(-given["label_logprob"]))
    stored["entropy"] = Lists(lists["entropy"].offsets, codes.encode_nats(given["entropy"]))
    if "tail_logprobs" in given:
        stored["tail_logprobs"] = Lists(lists[TAIL].offsets, codes.encode_nats(-given["tail_logprobs"][by_place]))
    del stored["head_logprobs"]
    return _split(stored, header)


def decode(stored: dict[str, Lists], header: Header, ranked: bool = True) -> dict[str, Lists]:
    """The inverse of `encode`, in the logical order: heads by value, ties inside a step by id; tails by id.

    Not `ranked`: inside a head or tail in the stored order, the two sorts are saved.

    Raises:
        ShardError: the columns do not fit each other; the message has no place yet.
    """
    lists = _join(stored, header)
    code = {name: lists[name].values for name in plane_sizes(header)}
    heads, tails = code["head_lengths"].astype(np.int64), code["tail_lengths"].astype(np.int64)
    temperatures = len(header.temperatures)
    _refuse_misfits(code, len(heads), int(heads.sum()), int(tails.sum()), header)
    table = _table(code["id_order"], header.vocab_size)

    rest, log_head_mass = codes.decode_odds(code["rest_mass"])
    values, ids = code["head_values"], _ids(code[HEAD], heads, table)
    if ranked:
        values, ids = planes.sort_by_value(values, ids, heads)
    logprobs = codes.decode_values(values, heads, log_head_mass[::temperatures])
    tail_ids = _ids(code[TAIL], tails, table)
    by_id = planes.sort_lists(tail_ids, tails) if ranked else slice(None)
    decoded: dict[str, Array] = {
        "input_ids": code["input_ids"].astype(np.int32, copy=False),
        "head_lengths": code["head_lengths"].astype(np.uint16),
        HEAD: ids,
        "head_logprobs": logprobs,
        "rest_mass": rest,
        "tail_lengths": code["tail_lengths"].astype(np.uint16),
        TAIL: tail_ids[by_id],
        "tail_counts": code["tail_counts"][by_id].astype(np.uint16),
        "label_logprob": 0.0 - codes.decode_nats(code["label_logprob"]),
        "label_rank": code["label_rank"].astype(np.uint32),
        "entropy": codes.decode_nats(code["entropy"]),
    }
    if "tail_logprobs" in code:
        decoded["tail_logprobs"] = 0.0 - codes.decode_nats(code["tail_logprobs"][by_id])
    lists["head_logprobs"] = lists[HEAD]
    lists |= {name: Lists(lists[name].offsets, _sealed(column)) for name, column in decoded.items()}
    return {name: lists[name] for name in lists if name not in ("id_order", "head_values")}


def _mass_codes(given: dict[str, Array], heads: Array, temperatures: int) -> Array:
    """Codes of the rest masses. At T = 1 the head's own sum is what the rest is not: exact for tiny heads as well."""
    rest = given["rest_mass"].reshape(-1, temperatures).astype(np.float64)
    other = 1.0 - rest
    other[:, 0] = codes.sums(np.exp(given["head_logprobs"].astype(np.float64)), heads)
    amiss = np.abs(rest[:, 0] + other[:, 0] - 1.0)
    assert (amiss < 2e-3).all(), f"head and rest mass of a position miss 1 by {amiss.max():.4f}"
    return codes.encode_odds(rest, other).reshape(-1)


def _table(first: Array, vocab_size: int) -> NDArray[np.int32]:
    if len(first) and first.max() >= vocab_size:
        raise ShardError(f"id_order has id {first.max()}, the vocabulary has {vocab_size}")
    table = planes.order_table(first, vocab_size)
    if len(table) != vocab_size:
        raise ShardError("id_order repeats an id")
    return table


def _ids(steps: Array, lengths: Array, table: NDArray[np.int32]) -> NDArray[np.int32]:
    places = planes.accumulate(steps, lengths)
    if len(places) and places.max() >= len(table):
        raise ShardError(f"an id's place is {places.max()}, the vocabulary has {len(table)}")
    return table[places]


def _rounded(values: Array) -> Array:
    return round_mantissa(values) if values.dtype == np.float32 else values


def _sealed(values: Array) -> Array:
    """Read-only, as views of plain shards are."""
    values.flags.writeable = False
    return values


def _split(columns: dict[str, Lists], header: Header) -> dict[str, Lists]:
    sizes, stored = plane_sizes(header), {}
    for name, column in columns.items():
        if name not in sizes:
            stored[name] = column
            continue
        for k, plane in enumerate(planes.split(column.values, sizes[name])):
            stored[f"{name}_{k}"] = Lists(column.offsets, plane)
    return stored


def _join(stored: dict[str, Lists], header: Header) -> dict[str, Lists]:
    sizes = plane_sizes(header)
    lists = {name: column for name, column in stored.items() if name.rpartition("_")[0] not in sizes}
    for name, size in sizes.items():
        parts = [stored[f"{name}_{k}"] for k in range(size)]
        if any(not np.array_equal(part.offsets, parts[0].offsets) for part in parts):
            raise ShardError(f"the planes of {name} have different lengths")
        lists[name] = Lists(parts[0].offsets, _sealed(planes.join([part.values for part in parts])))
    return lists


def _refuse_misfits(code: dict[str, Array], n: int, head_items: int, tail_items: int, header: Header) -> None:
    """Lengths without which nothing can be cut."""
    sizes = dict.fromkeys(("tail_lengths", "label_logprob", "label_rank", "entropy"), n)
    sizes |= {"rest_mass": n * len(header.temperatures), HEAD: head_items, "head_values": head_items}
    sizes |= {name: tail_items for name in (TAIL, "tail_counts", "tail_logprobs") if name in code}
    for name, size in sizes.items():
        if len(code[name]) != size:
            raise ShardError(f"{name} has {len(code[name])} entries, {size} are due")
