"""The compact encoding: exact where it says so, within the bound elsewhere, and the same bytes for the same values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards import Header, ShardError, codes, compact, planes
from shards.lists import Lists
from shards.rounding import round_mantissa


def one_row(values: np.ndarray) -> Lists:
    return Lists(np.array([0, len(values)]), values)


def capture_lists(header: Header, heads: list[int], tails: list[int], seed: int, spread: float) -> dict[str, Lists]:
    """Logical columns of one row: heads and tails of these lengths, distinct ids, some label never possible."""
    rng = np.random.default_rng(seed)
    n, V = len(heads), header.vocab_size
    ids = [rng.permutation(V)[: h + t].astype(np.int32) for h, t in zip(heads, tails, strict=True)]
    rest = np.where(np.array(heads) == 0, 1.0, rng.random(n) ** 4 * rng.integers(0, 2, n))
    logprobs = []
    for h, r in zip(heads, rest, strict=True):
        x = np.sort(rng.normal(0, spread, h))[::-1]
        logprobs.append((x - np.logaddexp.reduce(x, initial=-np.inf) + np.log1p(-r)).astype(np.float32) if h else x)
    label = -rng.exponential(3.0, n)
    label[:1] = -np.inf
    columns = {
        "input_ids": rng.integers(0, V, n + 1).astype(np.int32),
        "head_lengths": np.array(heads, np.uint16),
        "head_ids": np.concatenate([i[:h] for i, h in zip(ids, heads, strict=True)]).astype(np.int32),
        "head_logprobs": np.concatenate(logprobs).astype(np.float32),
        "rest_mass": np.repeat(rest, len(header.temperatures)).astype(np.float32),
        "tail_lengths": np.array(tails, np.uint16),
        "tail_ids": np.concatenate([np.sort(i[h:]) for i, h in zip(ids, heads, strict=True)]).astype(np.int32),
        "tail_counts": rng.integers(1, 65_536, sum(tails)).astype(np.uint16),
        "label_logprob": label.astype(np.float32),
        "label_rank": rng.integers(0, V, n).astype(np.uint32),
        "entropy": (rng.random(n) * np.log(V)).astype(np.float32),
        "tail_logprobs": -rng.exponential(5.0, sum(tails)).astype(np.float32),
    }
    return {name: one_row(values) for name, values in columns.items()}


def header_of(vocab: int, temperatures: tuple[float, ...]) -> Header:
    return Header(
        kind="captures", encoding="compact", num_rows=1, vocab_size=vocab, vocab_rows=vocab, max_length=100_000,
        temperatures=temperatures, optional_columns=("tail_logprobs",),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.sampled_from([64, 256, 257, 49_152, 65_537, 200_000]),
    temperatures=st.sampled_from([(1.0,), (1.0, 2.0), (1.0, 0.5, 2.0)]),
    lengths=st.lists(st.tuples(st.sampled_from([0, 1, 2, 8, 32]), st.sampled_from([0, 1, 5, 32])), max_size=12),
    spread=st.sampled_from([0.0, 0.01, 2.0, 12.0]),
    seed=st.integers(0, 10_000),
)
@example(vocab=200_000, temperatures=(1.0,), lengths=[(65_535, 65_535), (0, 0), (1, 65_535)], spread=2.0, seed=1)
@example(vocab=64, temperatures=(1.0, 2.0), lengths=[(64, 0)] * 3, spread=3.0, seed=2)
@example(vocab=64, temperatures=(1.0,), lengths=[], spread=1.0, seed=3)
def test_every_capture_comes_back_within_the_stated_bounds_and_codes_to_the_same_bytes(
    vocab, temperatures, lengths, spread, seed
):
    header = header_of(vocab, temperatures)
    heads, tails = [h for h, _ in lengths], [t for _, t in lengths]
    given_lists = capture_lists(header, heads, tails, seed, spread) if lengths else _nothing()
    stored = compact.encode(given_lists, header)
    read = compact.decode(stored, header)
    assert set(read) == set(given_lists)
    written, got = ({name: column.values for name, column in x.items()} for x in (given_lists, read))
    for name in ("input_ids", "head_lengths", "tail_lengths", "tail_ids", "tail_counts", "label_rank"):
        np.testing.assert_array_equal(got[name], written[name], err_msg=name)
    assert all(got[name].dtype == written[name].dtype for name in written)
    for name in ("label_logprob", "entropy", "tail_logprobs"):
        np.testing.assert_allclose(got[name], round_mantissa(written[name]), atol=codes.NATS_ERROR + 1e-6, rtol=0)
    assert np.isneginf(got["label_logprob"]).sum() == np.isneginf(written["label_logprob"]).sum()

    rest, coded = written["rest_mass"], got["rest_mass"]
    np.testing.assert_array_equal(coded[rest == 0], 0.0)
    np.testing.assert_array_equal(coded[rest == 1], 1.0)
    assert (np.abs(coded - rest) <= 1.02 * codes.ODDS_ERROR * rest * (1 - rest) + 3e-4 * rest).all()
    _compare_heads(written, got, heads)
    _same_codes(stored, read, header)


def _nothing() -> dict[str, Lists]:
    lists = capture_lists(header_of(64, (1.0,)), [1], [1], 0, 1.0)
    return {
        name: one_row(column.values[:0] if name != "input_ids" else column.values) for name, column in lists.items()
    }


def _compare_heads(written: dict, got: dict, heads: list[int]) -> None:
    """Same ids, log-probabilities within the bound above the cut; rank order with ties by id."""
    ends = np.cumsum(heads, dtype=np.int64)[:-1] if heads else []
    pieces = (np.split(x[name], ends) for x in (written, got) for name in ("head_ids", "head_logprobs"))
    for ids, logprobs, got_ids, got_logprobs in zip(*pieces, strict=True):
        np.testing.assert_array_equal(got_ids[np.lexsort((got_ids, -got_logprobs))], got_ids)
        a, b = np.argsort(ids), np.argsort(got_ids)
        np.testing.assert_array_equal(ids[a], got_ids[b])
        shown = logprobs[a] > logprobs.max(initial=-np.inf) - codes.LAST_VALUE / codes.VALUE_STEP
        apart = np.abs(logprobs[a] - got_logprobs[b])[shown]
        assert apart.max(initial=0) <= codes.HEAD_ERROR + 2e-3


def _same_codes(stored: dict[str, Lists], read: dict[str, Lists], header: Header) -> None:
    """Also after plain has rounded the decoded values to 12 mantissa bits."""
    again = compact.encode(read, header)
    for name, column in stored.items():
        np.testing.assert_array_equal(again[name].values, column.values, err_msg=name)
        np.testing.assert_array_equal(again[name].offsets, column.offsets, err_msg=name)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.0, 1.0, width=32), st.floats(1.0, 2.0, width=32))
def test_mass_codes_survive_rounding_at_any_temperature(mass, scale):
    rest = round_mantissa(np.array([mass, mass / scale, 1 - mass / 1e5], np.float32))
    code = codes.encode_odds(rest, 1.0 - rest.astype(np.float64))
    again = round_mantissa(codes.decode_odds(code)[0])
    np.testing.assert_array_equal(codes.encode_odds(again, 1.0 - again.astype(np.float64)), code)
    assert ((rest == 0) == (codes.decode_odds(code)[0] == 0)).all()


def test_the_smallest_and_the_largest_masses_stay_apart_from_zero_and_one():
    code = codes.encode_odds(np.array([1e-45, 1.0, 0.0], np.float32), np.array([1.0, 1e-30, 1.0]))
    assert code.tolist() == [32768 - round(103.28 * 64), 32768 + 32 * 64, 0]
    mass, log_other = codes.decode_odds(code)
    assert mass[0] > 0
    np.testing.assert_allclose(log_other, [0.0, -32.0, 0.0], atol=1e-6)


def test_a_head_of_tiny_mass_keeps_its_log_probabilities():
    header = header_of(200_000, (1.0,))
    lists = capture_lists(header, [4, 4], [0, 0], 0, 1.0)
    lists["head_logprobs"] = one_row(np.log(np.array([5, 4, 3, 2] * 2) * 1e-6).astype(np.float32))
    lists["rest_mass"] = one_row(np.array([1 - 14e-6] * 2, np.float32))
    read = compact.decode(compact.encode(lists, header), header)
    apart = np.sort(read["head_logprobs"].values) - np.sort(lists["head_logprobs"].values)
    assert np.abs(apart).max() < codes.HEAD_ERROR


def test_a_position_whose_masses_do_not_sum_to_one_is_our_mistake():
    header = header_of(64, (1.0,))
    lists = capture_lists(header, [3], [0], 0, 1.0)
    lists["rest_mass"] = one_row(np.array([0.5], np.float32) + lists["rest_mass"].values)
    with pytest.raises(AssertionError, match="miss 1 by 0"):
        compact.encode(lists, header)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("head_values_0", lambda v: v[:-1], "head_values has 4 entries, 5 are due"),
        ("entropy_1", lambda v: v[:-1], "the planes of entropy have different lengths"),
        ("tail_ids_1", lambda v: np.full_like(v, 255), "an id's place is"),
        ("tail_lengths_0", lambda v: v + np.uint8(1), "tail_ids has 3 entries, 5 are due"),
        ("id_order_0", lambda _: np.array([7, 7], np.uint8), "the planes of id_order have different lengths"),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(column, change, message):
    header = header_of(1000, (1.0,))
    stored = compact.encode(capture_lists(header, [2, 3], [1, 2], 0, 1.0), header)
    stored[column] = one_row(change(stored[column].values))
    with pytest.raises(ShardError, match=message):
        compact.decode(stored, header)


@pytest.mark.parametrize(("order", "message"), [([7, 7], "id_order repeats an id"), ([1000], "id_order has id 1000")])
def test_an_order_that_is_none_is_refused(order, message):
    header = header_of(1000, (1.0,))
    stored = compact.encode(capture_lists(header, [2, 3], [1, 2], 0, 1.0), header)
    for k, plane in enumerate(planes.split(np.array(order), 2)):
        stored[f"id_order_{k}"] = one_row(plane)
    with pytest.raises(ShardError, match=message):
        compact.decode(stored, header)
