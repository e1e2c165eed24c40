"""The plain twin against fp64 softmax written out in numpy, one position at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.errors import UserError
from teacher_dump.config import DumpConfig, TailDraws, TailPerMass
from teacher_dump.extraction import Extracted, ExtractionSpec, NonFiniteLogitsError, extract, to_captures
from teacher_dump.philox import Addresses, key_of

VOCAB, ROWS = 700, 768  # three blocks of sums, 68 dead rows


def spec_of(vocab: int = VOCAB, **settings: object) -> ExtractionSpec:
    return ExtractionSpec.of(DumpConfig(**settings), vocab)  # type: ignore[arg-type]


def run(logits: torch.Tensor, labels: list[int], spec: ExtractionSpec, first: int = 0) -> Extracted:
    N = len(logits)
    places = torch.arange(first, first + N)
    addresses = Addresses(key_of("corpus", 0), places // 5, places % 5)
    return extract(logits, torch.tensor(labels, dtype=torch.int64), addresses, spec)


def probabilities(logits: torch.Tensor, temperature: float = 1.0, vocab: int = VOCAB) -> np.ndarray:
    """fp64 [N, vocab], dead rows cut off."""
    z = logits[:, :vocab].double().numpy() / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def stated_order(logits: torch.Tensor, vocab: int = VOCAB) -> np.ndarray:
    """[N, vocab] ids by value descending, id ascending."""
    z = logits[:, :vocab].float().numpy()
    ids = np.broadcast_to(np.arange(vocab), z.shape)
    return np.lexsort((ids, -z), axis=1)


def per_position(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1])


@pytest.fixture
def logits() -> torch.Tensor:
    """[40, 768]: smooth ones, rounded ones full of ties, and peaked ones."""
    generator = torch.Generator().manual_seed(1)
    z = 3.0 * torch.randn(40, ROWS, generator=generator)
    z[10:25] = (z[10:25] * 2).round() / 2
    z[25:] *= 4.0
    return z


@pytest.fixture
def labels() -> list[int]:
    return [int(i) for i in torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(2))]


def test_a_fixed_head_is_the_first_k_of_the_stated_order(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(head_size=12, head_mass=1.0))
    assert (got.head_lengths == 12).all()
    np.testing.assert_array_equal(got.head_ids.reshape(40, 12), stated_order(logits)[:, :12])
    p = np.take_along_axis(probabilities(logits), stated_order(logits)[:, :12], axis=1)
    np.testing.assert_allclose(got.head_logprobs.reshape(40, 12), np.log(p), rtol=1e-6, atol=3e-6)


def test_ties_at_the_cut_go_to_the_lower_ids(labels: list[int]) -> None:
    logits = torch.zeros(40, ROWS)
    logits[:, 600] = 1.0
    logits[:, VOCAB:] = 50.0
    got = run(logits, labels, spec_of(head_size=5, head_mass=1.0))
    np.testing.assert_array_equal(got.head_ids.reshape(40, 5), np.tile([600, 0, 1, 2, 3], (40, 1)))


def test_an_adaptive_head_is_the_shortest_prefix_with_the_mass(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(head_size=30, head_mass=0.9))
    p = np.take_along_axis(probabilities(logits), stated_order(logits), axis=1)[:, :30]
    expected = np.minimum((np.cumsum(p, axis=1) < 0.9).sum(axis=1) + 1, 30)
    np.testing.assert_array_equal(got.head_lengths, expected)
    assert len(set(expected.tolist())) > 3, "the fixture should give heads of several lengths"


def test_must_keep_ids_join_the_head_once_and_in_order(logits: torch.Tensor, labels: list[int]) -> None:
    must = (5, 0, int(stated_order(logits)[0, 0]))
    got = run(logits, labels, spec_of(head_size=10, head_mass=0.8, must_keep=must))
    plain = run(logits, labels, spec_of(head_size=10, head_mass=0.8))
    order = stated_order(logits)
    for i, (head, prefix) in enumerate(
        zip(per_position(got.head_ids, got.head_lengths), per_position(plain.head_ids, plain.head_lengths), strict=True)
    ):
        wanted = set(prefix.tolist()) | set(must)
        assert head.tolist() == [k for k in order[i].tolist() if k in wanted]


@pytest.mark.parametrize("head_size", [0, 3, 20, VOCAB, VOCAB + 9])
def test_rest_mass_is_the_exact_mass_outside_the_head(logits: torch.Tensor, labels: list[int], head_size: int) -> None:
    spec = spec_of(head_size=head_size, head_mass=1.0, temperatures=(1.0, 2.0, 0.5))
    got = run(logits, labels, spec)
    for column, temperature in enumerate(spec.temperatures):
        p = probabilities(logits, temperature)
        outside = np.take_along_axis(p, stated_order(logits)[:, head_size:], axis=1).sum(axis=1)
        np.testing.assert_allclose(got.rest_mass[:, column], outside, rtol=1e-4, atol=1e-30)
    assert got.rest_mass.shape == (40, 3)
    if head_size >= VOCAB:
        assert (got.rest_mass == 0).all()
        assert (got.tail_lengths == 0).all()
        assert (got.head_lengths == VOCAB).all()


def test_head_and_rest_give_back_every_stored_temperature(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(head_size=8, head_mass=0.95, temperatures=(1.0, 2.0)))
    p = probabilities(logits, 2.0)
    ids = per_position(got.head_ids, got.head_lengths)
    logprobs = per_position(got.head_logprobs, got.head_lengths)
    for i in range(40):
        shares = np.exp(logprobs[i].astype(np.float64) / 2.0)
        rebuilt = (1.0 - got.rest_mass[i, 1]) * shares / shares.sum()
        np.testing.assert_allclose(rebuilt, p[i, ids[i]], rtol=2e-5)


def test_a_rest_of_a_millionth_is_accurate_to_one_percent() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 151_936, generator=generator)
    logits[:, 77] = 26.0 + torch.rand(50, generator=generator)
    got = run(logits, [77] * 50, spec_of(151_669, head_size=1, temperatures=(1.0,)))
    p = probabilities(logits, vocab=151_669)
    exact = np.delete(p, 77, axis=1).sum(axis=1)
    assert exact.min() > 3e-7
    assert exact.max() < 3e-6
    np.testing.assert_allclose(got.rest_mass[:, 0], exact, rtol=1e-2)
    np.testing.assert_allclose(got.rest_mass[:, 0], exact, rtol=1e-5)


def test_label_statistics_count_by_the_stated_order(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(head_size=4))
    order = stated_order(logits)
    p = probabilities(logits)
    np.testing.assert_array_equal(got.label_rank, [order[i].tolist().index(labels[i]) for i in range(40)])
    np.testing.assert_allclose(got.label_logprob, np.log(p[np.arange(40), labels]), rtol=1e-6, atol=3e-6)


def test_a_label_in_the_head_has_the_head_s_logprob(logits: torch.Tensor) -> None:
    labels = stated_order(logits)[:, 2].tolist()
    got = run(logits, labels, spec_of(head_size=4, head_mass=1.0))
    np.testing.assert_array_equal(got.label_logprob, got.head_logprobs.reshape(40, 4)[:, 2])
    np.testing.assert_array_equal(got.label_rank, np.full(40, 2))


def test_entropy_is_that_of_the_full_distribution(logits: torch.Tensor, labels: list[int]) -> None:
    p = probabilities(logits)
    exact = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(run(logits, labels, spec_of()).entropy, exact, rtol=1e-5, atol=1e-6)


def test_dead_rows_change_nothing_but_their_own_mass(logits: torch.Tensor, labels: list[int]) -> None:
    louder = logits.clone()
    louder[:, VOCAB:] += 30.0
    quiet, loud = run(logits, labels, spec_of(logsumexp=True)), run(louder, labels, spec_of(logsumexp=True))
    for name in ("head_ids", "head_logprobs", "rest_mass", "tail_ids", "label_rank", "entropy", "logsumexp"):
        np.testing.assert_array_equal(getattr(quiet, name), getattr(loud, name), err_msg=name)
    exact = probabilities(logits, vocab=ROWS)[:, VOCAB:].sum(axis=1)
    np.testing.assert_allclose(quiet.dead_row_mass, exact, rtol=1e-4)
    assert loud.dead_row_mass.min() > quiet.dead_row_mass.min()


def test_optional_columns_give_logits_back(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(head_size=2, tail_logprobs=True, logsumexp=True))
    assert got.logsumexp is not None
    assert got.tail_logprobs is not None
    owner = np.repeat(np.arange(40), got.tail_lengths)
    np.testing.assert_allclose(
        got.tail_logprobs + got.logsumexp[owner], logits.numpy()[owner, got.tail_ids], rtol=1e-5, atol=1e-4
    )
    bare = run(logits, labels, spec_of())
    assert bare.logsumexp is None
    assert bare.tail_logprobs is None


@pytest.mark.parametrize("tail", [TailDraws(draws=5), TailDraws(draws=200), TailPerMass(draws_per_mass=40.0)])
def test_draws_are_unique_ascending_outside_the_head_and_as_many_as_asked(
    logits: torch.Tensor, labels: list[int], tail: TailDraws | TailPerMass
) -> None:
    got = run(logits, labels, spec_of(head_size=8, head_mass=1.0, tail=tail))
    exact = np.take_along_axis(probabilities(logits), stated_order(logits)[:, 8:], axis=1).sum(axis=1)
    heads = per_position(got.head_ids, got.head_lengths)
    tails = per_position(got.tail_ids, got.tail_lengths)
    counts = per_position(got.tail_counts, got.tail_lengths)
    for i in range(40):
        wanted = tail.draws if isinstance(tail, TailDraws) else math.ceil(40.0 * exact[i])
        assert int(counts[i].sum()) == wanted
        assert tails[i].tolist() == sorted(set(tails[i].tolist()))
        assert not set(tails[i].tolist()) & set(heads[i].tolist())
        assert tails[i].max(initial=0) < VOCAB


def test_no_draws_can_be_asked_for(logits: torch.Tensor, labels: list[int]) -> None:
    got = run(logits, labels, spec_of(tail=TailDraws(draws=0)))
    assert (got.tail_lengths == 0).all()
    assert len(got.tail_ids) == len(got.tail_counts) == 0


def test_where_nothing_is_left_nothing_is_drawn(labels: list[int]) -> None:
    logits = torch.full((40, ROWS), -math.inf)
    logits[:, 9] = 0.0
    logits[20:, 10] = 0.0
    got = run(logits, labels, spec_of(head_size=1, tail=TailDraws(draws=6)))
    np.testing.assert_allclose(got.rest_mass[:, 0], [0.0] * 20 + [0.5] * 20)
    np.testing.assert_array_equal(got.tail_lengths, [0] * 20 + [1] * 20)
    np.testing.assert_array_equal(got.tail_ids, np.full(20, 10))
    np.testing.assert_allclose(got.entropy, [0.0] * 20 + [math.log(2)] * 20, rtol=1e-6)


def test_the_batch_does_not_change_a_bit(logits: torch.Tensor, labels: list[int]) -> None:
    spec = spec_of(head_size=6, must_keep=(3,), tail=TailPerMass(draws_per_mass=64.0), tail_logprobs=True)
    whole = run(logits, labels, spec)
    cuts = [0, 1, 2, 9, 30, 40]
    parts = [run(logits[a:b], labels[a:b], spec, a) for a, b in itertools.pairwise(cuts)]
    one, many = to_captures([whole], [40])[0], to_captures(parts, [40])[0]
    for name in ("head_lengths", "head_ids", "head_logprobs", "rest_mass", "tail_ids", "tail_counts", "tail_logprobs",
                 "label_logprob", "label_rank", "entropy"):  # fmt: skip
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name), err_msg=name)


def test_captures_are_cut_where_rows_end(logits: torch.Tensor, labels: list[int]) -> None:
    whole = run(logits, labels, spec_of(head_size=6))
    captures = to_captures([whole], [7, 0, 33])
    assert [capture.num_positions for capture in captures] == [7, 0, 33]
    assert [len(capture.head_ids) for capture in captures] == [
        int(whole.head_lengths[:7].sum()), 0, int(whole.head_lengths[7:].sum()),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([c.tail_ids for c in captures]), whole.tail_ids)
    assert captures[0].dead_row_mass == pytest.approx(whole.dead_row_mass[:7].mean())
    assert captures[1].dead_row_mass == 0.0


def test_draws_follow_the_exact_distribution_outside_the_head() -> None:
    """1e6 draws at one distribution, cells pooled to an expectation of 20, chi-square with a fixed seed."""
    generator = torch.Generator().manual_seed(4)
    row = 2.5 * torch.randn(1, ROWS, generator=generator)
    positions, draws = 500, 2000
    spec = replace(spec_of(head_size=8, head_mass=1.0, tail=TailDraws(draws=draws)), temperatures=(1.0,))
    observed = np.zeros(VOCAB)
    for first in range(0, positions, 50):
        got = run(row.expand(50, -1), [0] * 50, spec, first)
        np.add.at(observed, got.tail_ids, got.tail_counts)
    assert observed.sum() == positions * draws
    tail = stated_order(row)[0, 8:]
    p = probabilities(row)[0, tail]
    expected = p / p.sum() * positions * draws
    small = expected < 20
    cells = np.append(observed[tail][~small], observed[tail][small].sum())
    means = np.append(expected[~small], expected[small].sum())
    if means[-1] < 20:
        means, cells = np.append(means[:-2], means[-2:].sum()), np.append(cells[:-2], cells[-2:].sum())
    statistic = float(((cells - means) ** 2 / means).sum())
    p_value = float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2.0), torch.tensor(statistic / 2.0)))
    assert len(cells) > 300
    assert p_value > 0.001, (statistic, len(cells) - 1)
    assert p_value < 0.999, (statistic, len(cells) - 1)


@pytest.mark.parametrize("head_size", [0, 6])
def test_no_positions_give_empty_columns(head_size: int) -> None:
    spec = spec_of(head_size=head_size, must_keep=(3,), tail_logprobs=True, logsumexp=True)
    capture = to_captures([run(torch.empty(0, ROWS), [], spec)], [0])[0]
    assert capture.num_positions == 0
    assert capture.rest_mass.shape == (0, 2)
    assert len(capture.head_ids) == len(capture.tail_ids) == 0


def test_nan_is_refused_at_its_position(logits: torch.Tensor, labels: list[int]) -> None:
    logits[17, 3] = math.nan
    with pytest.raises(NonFiniteLogitsError) as caught:
        run(logits, labels, spec_of())
    assert caught.value.index == 17


def test_a_must_keep_id_without_a_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"dump\.must_keep: 700 is no token id; give ids from 0 to 699"):
        spec_of(must_keep=(1, 700))


def test_bf16_logits_are_taken_as_they_are(logits: torch.Tensor, labels: list[int]) -> None:
    rough = logits.bfloat16()
    got = run(rough, labels, spec_of(head_size=12, head_mass=1.0))
    np.testing.assert_array_equal(got.head_ids.reshape(40, 12), stated_order(rough)[:, :12])
    p = probabilities(rough)
    np.testing.assert_allclose(got.entropy, -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.label_logprob, np.log(p[np.arange(40), labels]), rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("step", [0.0, 0.25, 1.0, 100.0])
def test_the_head_of_a_large_vocabulary_is_found_by_blocks(step: float) -> None:
    """20,001 ids are 79 blocks, enough for two stages; rounding to `step` makes ties inside and across blocks."""
    vocab = 20_001
    logits = 3.0 * torch.randn(12, vocab + 40, generator=torch.Generator().manual_seed(5))
    if step:
        logits = (logits / step).round() * step
    got = run(logits, [vocab - 1] * 12, spec_of(vocab, head_size=12, head_mass=1.0))
    order = stated_order(logits, vocab)
    np.testing.assert_array_equal(got.head_ids.reshape(12, 12), order[:, :12])
    np.testing.assert_array_equal(got.label_rank, [order[i].tolist().index(vocab - 1) for i in range(12)])
