"""Which rows may hold a text: a few bits for every pair of neighbouring characters (Faloutsos 1985, signature files).

No row that holds the text is missed; some that do not are named, so whoever asks looks again. Letters in lower case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS_PER_TOKEN = 8


def signature_bytes(max_length: int) -> int:
    """Bytes a row: a quarter of the bits are set for a full row of English. At least 32."""
    wanted = max(256, max_length * _BITS_PER_TOKEN)
    return int(1 << (wanted - 1).bit_length()) // 8


def signature(text: str, num_bytes: int) -> NDArray[np.uint8]:
    """[num_bytes] bits of the text's character pairs."""
    bits = np.zeros(8 * num_bytes, np.bool_)
    bits[_pairs(text.lower(), 8 * num_bytes)] = True
    return np.packbits(bits)


def candidates(signatures: NDArray[np.uint8], needle: str) -> NDArray[np.bool_]:
    """[rows] which rows of `signatures` [rows, bytes] may hold `needle`; all of them for a single character."""
    rows, num_bytes = signatures.shape
    found = np.ones(rows, np.bool_)
    for bit in np.unique(_pairs(needle.lower(), 8 * num_bytes)).tolist():
        found &= (signatures[:, bit // 8] & (128 >> bit % 8)) != 0
    return found


def _pairs(text: str, num_bits: int) -> NDArray[np.int64]:
    """The bit of each pair of neighbouring characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    mixed = (codes[:-1] * np.uint64(0x9E3779B97F4A7C15)) ^ (codes[1:] * np.uint64(0xC2B2AE3D27D4EB4F))
    return ((mixed >> np.uint64(29)) % np.uint64(num_bits)).astype(np.int64)
