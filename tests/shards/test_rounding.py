"""12 mantissa bits: nearest even, never to zero, never to infinity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.rounding import RELATIVE_ERROR, round_mantissa

NORMAL = st.floats(min_value=2.0**-126, max_value=2.0**127, width=32).flatmap(lambda x: st.sampled_from([x, -x]))


def one(value: float) -> float:
    return float(round_mantissa(np.array([value], np.float32))[0])


@given(NORMAL)
def test_normal_values_round_to_nearest_even_like_python_integers(x: float):
    mantissa, exponent = math.frexp(x)
    assert one(x) == round(mantissa * 2**13) * 2.0 ** (exponent - 13)


@given(NORMAL)
def test_the_stated_error_bound_holds(x: float):
    assert abs(one(x) - x) <= RELATIVE_ERROR * abs(x)


@given(st.floats(width=32, allow_nan=False))
def test_rounding_twice_changes_nothing(x: float):
    assert one(one(x)) == one(x)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_finite_stays_finite_and_nonzero_stays_nonzero_with_its_sign(x: float):
    assert math.isfinite(one(x))
    assert (one(x) > 0) - (one(x) < 0) == (x > 0) - (x < 0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2.0**-13, 1.0),  # a tie goes to the even neighbour
        (1 + 3 * 2.0**-13, 1 + 2 * 2.0**-12),
        (1e-45, 2.0**-138),  # the smallest subnormal becomes the smallest stored value
        (3.4028235e38, float(np.float32(3.4028235e38)) * (1 - 2.0**-13) / (1 - 2.0**-24)),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (0.0, 0.0),
    ],
)
def test_edges(value: float, expected: float):
    assert one(value) == expected


def test_every_nan_becomes_a_nan_and_shapes_stay():
    patterns = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(round_mantissa(patterns)).all()
    assert round_mantissa(np.ones((3, 2), np.float32)).shape == (3, 2)


def test_the_eleven_low_bits_are_zero():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert (round_mantissa(values).view(np.uint32) & 0x7FF == 0).all()
