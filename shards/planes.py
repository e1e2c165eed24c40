"""Integers as byte planes, and lists of ids as differences in an order that puts frequent ids first.

zstd sees one plane at a time, so a high byte that is nearly always zero costs nearly nothing. What the numbers mean is
`compact`'s to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FREQUENT = 8
"""An id gets a place in the order when the batch has it this often: storing it must pay."""
_LIST_BITS, _KEY_BITS, _PLACE_BITS = 24, 24, 16


def num_planes(largest: int) -> int:
    """Bytes that hold 0 to `largest`."""
    return max(1, (int(largest).bit_length() + 7) // 8)


def split(numbers: Array, planes: int) -> list[NDArray[np.uint8]]:
    """Non-negative integers below 256**planes -> their bytes, lowest first."""
    return [(numbers >> (8 * k)).astype(np.uint8) for k in range(planes)]


def join(planes: Sequence[NDArray[np.uint8]]) -> Array:
    """The inverse of `split`: uint8 as it is for one plane, else int32."""
    if len(planes) == 1:
        return planes[0]
    numbers = planes[0].astype(np.int32)
    for k, plane in enumerate(planes[1:], 1):
        numbers += plane.astype(np.int32) << np.int32(8 * k)
    return numbers


def frequent_first(ids: Array, vocab_size: int) -> NDArray[np.int32]:
    """The ids that occur at least `FREQUENT` times, most frequent first, ties by id."""
    counts = np.bincount(ids, minlength=vocab_size)
    often = np.flatnonzero(counts >= FREQUENT)
    return often[np.argsort(-counts[often], kind="stable")].astype(np.int32)


def order_table(first: Array, vocab_size: int) -> NDArray[np.int32]:
    """[V] the id at each place: `first`, then every other id, ascending. Not of length V when `first` repeats one."""
    others = np.ones(vocab_size, np.bool_)
    others[first] = False
    return np.concatenate([first, np.flatnonzero(others)]).astype(np.int32)


def places_of(table: NDArray[np.int32]) -> NDArray[np.int32]:
    """[V] the place of each id: the inverse of `order_table`."""
    places = np.empty_like(table)
    places[table] = np.arange(len(table), dtype=np.int32)
    return places


def differences(rising: Array, lengths: Array) -> Array:
    """Lists that lie end to end and rise strictly -> first number, then steps."""
    steps = np.diff(rising, prepend=rising.dtype.type(0))
    starts = _starts(lengths)
    steps[starts] = rising[starts]
    return steps


def accumulate(steps: Array, lengths: Array) -> NDArray[np.uint32]:
    """The inverse of `differences`. The running sum over all lists may wrap around; what is left of it does not."""
    total = np.cumsum(steps, dtype=np.uint32)
    starts = _starts(lengths)
    total -= np.repeat(total[starts] - steps[starts].astype(np.uint32), lengths[lengths > 0])
    return total


def sort_lists(keys: Array, lengths: Array) -> NDArray[np.int64]:
    """The permutation that sorts each of the lists that lie end to end by its keys (below 2**24, distinct in a list).

    One sort of packed 64-bit numbers: several times faster than an argsort.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    owner = owners(lengths)
    place = np.arange(len(keys)) - starts[owner]
    packed = (owner << (_KEY_BITS + _PLACE_BITS)) | (keys.astype(np.int64) << _PLACE_BITS) | place
    packed = np.sort(packed.view(np.uint64))
    return starts[owner] + (packed & np.uint64(2**_PLACE_BITS - 1)).astype(np.int64)


def sort_by_value(values: NDArray[np.uint8], ids: Array, lengths: Array) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Each list of (value, id) pairs in rising order."""
    packed = (owners(lengths) << (8 + _KEY_BITS)) | (values.astype(np.int64) << _KEY_BITS) | ids
    packed.sort()
    return (packed >> _KEY_BITS).astype(np.uint8), (packed & (2**_KEY_BITS - 1)).astype(np.int32)


def owners(lengths: Array) -> NDArray[np.int64]:
    """[sum(lengths)] which list each item belongs to."""
    assert len(lengths) < 2**_LIST_BITS, "too many positions for one batch; write fewer rows a batch"
    return np.repeat(np.arange(len(lengths)), lengths)


def _starts(lengths: Array) -> NDArray[np.int64]:
    """Where the lists that have items begin."""
    return (np.cumsum(lengths, dtype=np.int64) - lengths)[lengths > 0]
