"""Checks of what the teacher said: heads, masses, tails, labels. Tolerances follow from rounding or codes: `Slack`.

Shapes: N positions, H head entries, S tail entries. See `FORMAT.md` for each rule in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..codes import HEAD_ERROR, LAST_VALUE, NATS_ERROR, ODDS_ERROR, VALUE_STEP
from ..header import Header
from ..rounding import RELATIVE_ERROR
from .findings import Findings
from .flat import Array, Entries, Flat, entries

HEADS, MASS, TAILS, LABELS = "heads", "mass", "tails", "labels"
ARITHMETIC = 1e-4
"""Absolute slack for sums over a vocabulary in the teacher's fp32."""
_SUM_DOUBT = 1e-6
"""A rest mass below this may come from rounding alone; it need not have draws."""


@dataclass(frozen=True)
class Slack:
    """By how much stored numbers may miss the true ones."""

    relative: float
    """Two stored values of one mass differ by this at most, relatively."""
    logprob: float
    """Absolute error of a log-probability in a head, on top of that."""
    nats: float
    """Absolute error of the log-probability of a label or drawn id, and of an entropy."""
    cut: float
    """Head log-probabilities this far below the maximum may be too high by anything."""


_ROUNDED = Slack(2 * RELATIVE_ERROR, 0.0, 0.0, np.inf)
_CODED = Slack(2.05 * ODDS_ERROR, HEAD_ERROR, NATS_ERROR, (LAST_VALUE - 0.5) / VALUE_STEP)


def slack_of(header: Header) -> Slack:
    """By what the numbers of a dataset went through."""
    return _CODED if header.coded else _ROUNDED


@dataclass(frozen=True, eq=False)
class _View:
    """The columns that the checks share, widened to float64."""

    flat: Flat
    header: Header
    head: Entries
    head_ids: NDArray[np.int64]  # [H]
    head_logprobs: NDArray[np.float64]  # [H]
    tail: Entries
    tail_ids: NDArray[np.int64]  # [S]
    rest: NDArray[np.float64]  # [N, temperatures]
    head_mass: NDArray[np.float64]  # [N] sum of exp(head_logprobs)
    head_entropy: NDArray[np.float64]  # [N] the head's part of the entropy

    @property
    def pure_prefix(self) -> bool:
        """The head holds the most likely ids and no others."""
        return not self.header.must_keep

    @property
    def tolerance(self) -> NDArray[np.float64]:
        """[N] by how much masses may miss one: rounding moves log p by |log p| / 2**13, the rest by rest / 2**13.

        Codes: they move the logit of the rest, and log-probabilities of tokens outside the head.
        """
        rounding = RELATIVE_ERROR * (self.head_entropy + self.rest[:, 0]) + ARITHMETIC
        if not self.header.coded:
            return rounding
        return rounding + self.rest[:, 0] * (self.slack.relative * (1 - self.rest[:, 0]) + 2 * self.slack.nats)

    @property
    def slack(self) -> Slack:
        return slack_of(self.header)


def check_captures(flat: Flat, header: Header, found: Findings) -> None:
    """All checks on a batch whose shapes fit."""
    if not _check_numbers(flat, header, found):
        return
    head, tail = entries(flat.column("head_lengths")), entries(flat.column("tail_lengths"))
    logprobs = flat.column("head_logprobs").astype(np.float64)
    view = _View(
        flat=flat,
        header=header,
        head=head,
        head_ids=flat.column("head_ids").astype(np.int64),
        head_logprobs=logprobs,
        tail=tail,
        tail_ids=flat.column("tail_ids").astype(np.int64),
        rest=flat.column("rest_mass").astype(np.float64).reshape(-1, len(header.temperatures)),
        head_mass=head.sum(np.exp(logprobs)),
        head_entropy=head.sum(-np.exp(logprobs) * logprobs),
    )
    _check_heads(view, found)
    _check_mass(view, found)
    _check_tails(view, found)
    _check_labels(view, found)


def _check_numbers(flat: Flat, header: Header, found: Findings) -> bool:
    """NaN, infinities and ranges of single values; whether the rest can be computed at all."""
    n = flat.num_positions
    heads, tails = entries(flat.column("head_lengths")), entries(flat.column("tail_lengths"))
    owner = {"head_logprobs": heads.owner, "tail_logprobs": tails.owner}
    owner["rest_mass"] = np.repeat(np.arange(n), len(header.temperatures))
    most = slack_of(header)
    limits = {
        "head_logprobs": (-np.inf, ARITHMETIC),
        "tail_logprobs": (-np.inf, ARITHMETIC),
        "label_logprob": (-np.inf, ARITHMETIC),
        "rest_mass": (0.0, 1.0 + ARITHMETIC),
        "entropy": (0.0, float(np.log(header.vocab_size)) * (1 + RELATIVE_ERROR) + ARITHMETIC + most.nats),
        "logsumexp": (-np.inf, np.inf),
    }
    fine = True
    for name in limits.keys() & flat.columns.lists.keys():
        values = flat.column(name)
        low, high = limits[name]
        bad = ~np.isfinite(values) | (values < low) | (values > high)
        at = owner.get(name, np.arange(n))[bad]
        first = dict(zip(at[::-1].tolist(), values[bad][::-1].tolist(), strict=True))
        wrong = np.zeros(n, np.bool_)
        wrong[at] = True
        found.positions(MASS, f"{name} is not a number from {low:.4g} to {high:.4g}", wrong, flat, first.__getitem__)
        fine &= not bad.any()
    return fine


def _check_heads(view: _View, found: Findings) -> None:
    flat, header, head = view.flat, view.header, view.head
    _check_ids(view, head, view.head_ids, "head_ids", HEADS, found)
    rising = np.zeros(len(view.head_ids), np.bool_)
    rising[1:] = (np.diff(view.head_logprobs) > 0) & (head.place[1:] > 0)
    wrong = head.any(rising)
    found.positions(HEADS, "head_logprobs rise inside the head", wrong, flat, _head_text(view))
    found.positions(HEADS, "head_ids repeat an id", _repeats(view, head.owner, view.head_ids), flat, _head_text(view))

    most = min(header.head_size, header.vocab_size)
    least = most if header.head_mass == 1.0 else min(1, most)
    wrong = (head.lengths < least) | (head.lengths > most + len(header.must_keep))
    what = f"the head has not {least} to {most + len(header.must_keep)} ids"
    found.positions(HEADS, what, wrong, flat, lambda p: f"{head.lengths[p]} ids")
    for needed in header.must_keep:
        lacking = ~head.any(view.head_ids == needed)
        found.positions(HEADS, f"must-keep id {needed} is not in the head", lacking, flat, _head_text(view))
    if header.head_mass < 1.0 and view.pure_prefix and most:
        last = head.sum(np.exp(view.head_logprobs) * (head.place == head.lengths[head.owner] - 1))
        early = (head.lengths < most) & (view.head_mass < header.head_mass - view.tolerance)
        unsure = view.tolerance + last * view.slack.logprob
        late = (head.lengths > 1) & (view.head_mass - last >= header.head_mass + unsure)
        what = f"the head is not the shortest prefix with mass {header.head_mass}"
        found.positions(HEADS, what, early | late, flat, lambda p: f"{head.lengths[p]} ids, {view.head_mass[p]:.5f}")


def _check_mass(view: _View, found: Findings) -> None:
    flat, rest = view.flat, view.rest
    wrong = np.abs(view.head_mass + rest[:, 0] - 1) > view.tolerance
    what = "head mass and rest mass do not sum to 1"
    found.positions(MASS, what, wrong, flat, lambda p: f"{view.head_mass[p]:.5f} + {rest[p, 0]:.5f}")
    if view.pure_prefix:
        for column, temperature in enumerate(view.header.temperatures):
            gain = (rest[:, column] - rest[:, 0]) * np.sign(temperature - 1.0)
            what = f"rest_mass at T = {temperature} is on the wrong side of that at T = 1"
            slack = view.slack.relative * rest.max(axis=1, initial=0.0) + ARITHMETIC
            found.positions(MASS, what, gain < -slack, flat, lambda p: rest[p].tolist())
    entropy = flat.column("entropy").astype(np.float64)
    doubt = view.head_mass * view.slack.logprob * (1 + view.head_entropy) + view.slack.nats + 10 * ARITHMETIC
    below = entropy < view.head_entropy * (1 - view.slack.relative) - doubt
    what = "entropy is below the head's own part of it"
    found.positions(MASS, what, below, flat, lambda p: f"{entropy[p]:.5f} < {view.head_entropy[p]:.5f}")


def _check_tails(view: _View, found: Findings) -> None:
    flat, header, tail = view.flat, view.header, view.tail
    _check_ids(view, tail, view.tail_ids, "tail_ids", TAILS, found)
    falling = np.zeros(len(view.tail_ids), np.bool_)
    falling[1:] = (np.diff(view.tail_ids) <= 0) & (tail.place[1:] > 0)
    found.positions(TAILS, "tail_ids do not rise", tail.any(falling), flat, _tail_text(view))
    owner = np.concatenate([view.head.owner, tail.owner])
    both = _repeats(view, owner, np.concatenate([view.head_ids, view.tail_ids]))
    both &= ~_repeats(view, view.head.owner, view.head_ids) & ~tail.any(falling)
    found.positions(TAILS, "a tail id is in the head as well", both, flat, _tail_text(view))

    counts = flat.column("tail_counts").astype(np.int64)
    found.positions(TAILS, "a tail count is 0", tail.any(counts == 0), flat, _tail_text(view))
    draws = tail.sum(counts).astype(np.int64)
    fewest, most = _draws_expected(view.rest[:, 0], header, view.slack.relative)
    wrong = (draws < fewest) | (draws > most)
    what = f"the number of draws does not follow {header.tail or 'no tail'}"
    found.positions(TAILS, what, wrong, flat, lambda p: f"{draws[p]} draws at rest mass {view.rest[p, 0]:.5g}")
    if "tail_logprobs" in header.optional_columns:
        drawn = tail.sum(np.exp(flat.column("tail_logprobs").astype(np.float64)))
        wrong = drawn > view.rest[:, 0] + view.tolerance
        what = "the drawn ids weigh more than the rest mass"
        found.positions(TAILS, what, wrong, flat, lambda p: f"{drawn[p]:.5f} > {view.rest[p, 0]:.5f}")


def _draws_expected(rest: Array, header: Header, doubt: float) -> tuple[Array, Array]:
    """[N] fewest and most draws that the header's rule allows for a rest mass known up to `doubt`, relatively."""
    if "draws" in header.tail:
        fewest = most = np.full(len(rest), header.tail["draws"], np.int64)
    else:
        per_mass = header.tail.get("draws_per_mass", 0.0)
        fewest = np.ceil(per_mass * rest * (1 - doubt)).astype(np.int64)
        most = np.ceil(per_mass * rest * (1 + doubt)).astype(np.int64)
        most = np.maximum(most, 1 if per_mass else 0)
    return np.where(rest < _SUM_DOUBT, 0, fewest), most


def _check_labels(view: _View, found: Findings) -> None:
    """A label found in the head has the head's log-prob and place; one outside weighs no more than the rest."""
    flat, head, n = view.flat, view.head, view.flat.num_positions
    labels, rank = flat.labels.astype(np.int64), flat.column("label_rank").astype(np.int64)
    logprob = flat.column("label_logprob").astype(np.float64)
    found.positions(LABELS, "label_rank is not below the vocabulary", rank >= view.header.vocab_size, flat, rank.item)

    hit = np.flatnonzero(view.head_ids == labels[head.owner])
    place, stored = np.full(n, -1), np.zeros(n)
    place[head.owner[hit]] = head.place[hit]
    stored[head.owner[hit]] = view.head_logprobs[hit]
    inside = place >= 0
    apart = inside & (np.abs(stored - logprob) > _label_slack(view, stored))
    what = "label_logprob is not the label's log-prob in the head"
    found.positions(LABELS, what, apart, flat, lambda p: f"{logprob[p]:.5f} against {stored[p]:.5f}")
    first, last = place, place
    if view.header.coded:  # any place among equal values
        first = head.sum(view.head_logprobs > stored[head.owner]).astype(np.int64)
        last = head.sum(view.head_logprobs >= stored[head.owner]).astype(np.int64) - 1
    misplaced = inside & ((rank < first) | ((rank > last) & view.pure_prefix))
    what = "label_rank is not the label's place in the head"
    found.positions(LABELS, what, misplaced, flat, lambda p: f"rank {rank[p]}, place {place[p]}")

    near = ~inside & (rank < head.lengths - len(view.header.must_keep))
    what = "label_rank says the label is in the head, but it is not"
    found.positions(LABELS, what, near, flat, lambda p: f"rank {rank[p]}, label {labels[p]}")
    heavy = ~inside & (np.exp(logprob) > view.rest[:, 0] + view.tolerance)
    what = "a label outside the head weighs more than the rest mass"
    found.positions(LABELS, what, heavy, flat, lambda p: f"{np.exp(logprob[p]):.5f} > {view.rest[p, 0]:.5f}")


def _label_slack(view: _View, stored: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] how far a label's log-prob may be from `stored`, that in the head."""
    if not view.header.coded:
        return view.slack.relative * np.abs(stored) + 1e-6
    top = np.full(len(stored), -np.inf)
    np.maximum.at(top, view.head.owner, view.head_logprobs)
    cut = top - stored >= view.slack.cut
    return np.where(
        cut, np.inf, view.slack.logprob + view.slack.nats + ARITHMETIC + 2 * RELATIVE_ERROR * np.abs(stored)
    )


def _check_ids(view: _View, owned: Entries, ids: Array, name: str, check: str, found: Findings) -> None:
    strange = (ids < 0) | (ids >= view.header.vocab_size)
    what = f"{name} has ids outside 0 to {view.header.vocab_size - 1}"
    found.positions(check, what, owned.any(strange), view.flat, lambda p: ids[owned.owner == p].tolist())


def _repeats(view: _View, owner: Array, ids: Array) -> NDArray[np.bool_]:
    """[N] whether an id comes twice at a position."""
    wrong = np.zeros(view.flat.num_positions, np.bool_)
    key = np.sort((owner << 32) + (ids & 0xFFFF_FFFF))
    wrong[key[1:][np.diff(key) == 0] >> 32] = True
    return wrong


def _head_text(view: _View) -> Callable[[int], str]:
    return lambda p: f"head {view.head_ids[view.head.owner == p].tolist()}"


def _tail_text(view: _View) -> Callable[[int], str]:
    return lambda p: f"tail {view.tail_ids[view.tail.owner == p].tolist()}"
