"""float32 values with 12 explicit mantissa bits: the eleven low bits are zero, so zstd squeezes them out.

Readers need nothing: the values are ordinary float32 numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 12
RELATIVE_ERROR = 2.0 ** -(MANTISSA_BITS + 1)
"""Bound of |stored - value| / |value| for normal float32 values."""

_DROPPED = 23 - MANTISSA_BITS
_SIGN = np.uint32(0x8000_0000)
_QUIET_NAN = np.uint32(0x7FC0_0000)
_LARGEST = np.uint32(0x7F80_0000 - (1 << _DROPPED))
_SMALLEST = np.uint32(1 << _DROPPED)


def round_mantissa(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest, ties to even, at 12 mantissa bits. Shape is kept; the result is a new array.

    Relative error at most 2**-13 for normal values (absolute at most 2**-139 below 2**-126). Infinities stay, NaN
    becomes the quiet NaN; a finite value never becomes infinite and a value other than zero never becomes zero,
    so a rest mass that exists goes on existing.
    """
    assert values.dtype == np.float32, values.dtype
    bits = np.ascontiguousarray(values).view(np.uint32)
    sign, magnitude = bits & _SIGN, bits & ~_SIGN
    odd = (magnitude >> np.uint32(_DROPPED)) & np.uint32(1)
    rounded = magnitude + np.uint32((1 << (_DROPPED - 1)) - 1) + odd
    rounded &= ~np.uint32((1 << _DROPPED) - 1)
    rounded = np.where(np.isfinite(values), np.minimum(rounded, _LARGEST), rounded)
    rounded = np.where(magnitude > 0, np.maximum(rounded, _SMALLEST), rounded)
    rounded = np.where(np.isnan(values), _QUIET_NAN, rounded)
    return (rounded | sign).view(np.float32)
