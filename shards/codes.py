"""The codes of the compact encoding: float32 values <-> small integers, each with its stated error bound.

Every encoder is a function of the value rounded to 12 mantissa bits (what plain stores), and encoding what was decoded
and rounded again gives the same code. Which column has which code is in `compact`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint16]
Array = NDArray[Any]

VALUE_STEP = 16
"""Head values: steps of 1/16 nat below the head's maximum."""
LAST_VALUE = 255
"""The last value, 15.9375 nats below the maximum, stands for everything from there on."""
ODDS_STEP = 64
"""Masses: steps of 1/64 of the logit."""
ODDS_ZERO = 32_768
NO_MASS, ALL_MASS = 0, 65_535
LARGEST_LOGIT = 32.0
NATS_STEP = 256
"""Log-probabilities of single tokens and entropies: steps of 1/256 nat."""
INFINITE = 65_535

ODDS_ERROR = 0.5 / ODDS_STEP
"""Bound of the error of a mass's logit; rest and 1 - rest are each off by this relatively, at most (and e^it - 1)."""
NATS_ERROR = 0.5 / NATS_STEP
"""Bound of the error of log-probabilities of labels and drawn ids, and of entropies."""
HEAD_ERROR = 1.0 / VALUE_STEP + ODDS_ERROR
"""Bound of the error of a head log-probability that is less than 15.9375 below the head's maximum.

Half a step for the value itself, half a step at most for the normaliser that all values of the head share, and the
error of the head's mass.
"""

_EXP_OF_VALUE = np.exp(-np.arange(LAST_VALUE + 1) / VALUE_STEP)


def encode_nats(nats: Array) -> Codes:
    """Values >= 0 (tiny negatives are 0), infinity allowed -> codes; finite ones are cut at 255.99."""
    assert not np.isnan(nats).any(), "NaN among nats"
    steps = np.rint(np.clip(nats.astype(np.float64), 0.0, 256.0) * NATS_STEP)
    return np.where(np.isinf(nats), INFINITE, np.minimum(steps, INFINITE - 1)).astype(np.uint16)


def decode_nats(codes: Array) -> NDArray[np.float32]:
    """The inverse of `encode_nats`."""
    nats = codes.astype(np.float32) / np.float32(NATS_STEP)
    return np.where(codes == INFINITE, np.float32(np.inf), nats)


def encode_odds(mass: Array, other: Array) -> Codes:
    """A mass and what it is not (both >= 0) -> code of log(mass / other); mass 0 and other 0 have their own codes."""
    assert np.isfinite(mass).all(), "a mass is not finite"
    with np.errstate(divide="ignore"):
        logit = np.log(mass.astype(np.float64)) - np.log(other.astype(np.float64))
    finite = np.clip(np.nan_to_num(logit, posinf=0.0, neginf=0.0), -500.0, LARGEST_LOGIT)
    codes = np.rint(finite * ODDS_STEP) + ODDS_ZERO
    return np.select([mass <= 0, other <= 0], [NO_MASS, ALL_MASS], codes).astype(np.uint16)


def decode_odds(codes: Array) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Masses, and log(1 - mass) without cancellation."""
    logit = (codes.astype(np.float64) - ODDS_ZERO) / ODDS_STEP
    softplus = np.logaddexp(0.0, logit)
    mass = np.select([codes == NO_MASS, codes == ALL_MASS], [0.0, 1.0], np.exp(logit - softplus))
    others = np.select([codes == NO_MASS, codes == ALL_MASS], [0.0, -np.inf], -softplus)
    return mass.astype(np.float32), others


def encode_values(logprobs: Array, maximum: Array) -> NDArray[np.uint8]:
    """Head log-probabilities and the maximum of their head -> steps below it."""
    below = (maximum.astype(np.float64) - logprobs.astype(np.float64)) * VALUE_STEP
    return np.minimum(np.rint(below), LAST_VALUE).astype(np.uint8)


def decode_values(values: NDArray[np.uint8], lengths: Array, log_mass: Array) -> NDArray[np.float32]:
    """Values [H] of heads with `lengths` [N] and log of their masses [N] -> log-probabilities that sum to the mass."""
    top = log_mass - np.log(sums(_EXP_OF_VALUE[values], lengths, empty=1.0))
    return np.repeat(top, lengths).astype(np.float32) - values * np.float32(1 / VALUE_STEP)


def sums(items: Array, lengths: Array, empty: float = 0.0) -> NDArray[np.float64]:
    """[N] sums of lists that lie end to end; `empty` for a list without items."""
    return _reduce(np.add, items, lengths, empty)


def maxima(items: Array, lengths: Array) -> NDArray[np.float64]:
    """[N] maxima of lists that lie end to end; 0 for a list without items."""
    return _reduce(np.maximum, items, lengths, 0.0)


def _reduce(operation: np.ufunc, items: Array, lengths: Array, empty: float) -> NDArray[np.float64]:
    result = np.full(len(lengths), empty)
    some = lengths > 0
    if some.any():
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        result[some] = operation.reduceat(items, starts[some])
    return result
