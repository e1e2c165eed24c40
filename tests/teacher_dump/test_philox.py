"""The generator against the published known answers, and its promise of being addressed, not streamed."""

from __future__ import annotations

import pytest
import torch

from teacher_dump.philox import Addresses, key_of, philox4x32

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_published_vectors_come_out(counter: str, key: str, answer: str) -> None:
    k0, k1 = words(key)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in words(counter))
    assert [int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))] == words(answer)


def test_a_number_depends_on_its_address_alone() -> None:
    key = key_of("corpus", 3)
    rows, positions = torch.tensor([7, 2**40 + 1, 7]), torch.tensor([0, 5, 9])
    addresses = Addresses(key, rows, positions)
    together = addresses.uniforms(9)
    alone = torch.cat([addresses[i : i + 1].uniforms(4) for i in (2, 0, 1)])
    assert torch.equal(together[[2, 0, 1], :4], alone)
    assert together.unique().numel() == 27


def test_another_seed_or_corpus_is_another_key() -> None:
    assert len({key_of("a", 0), key_of("a", 1), key_of("b", 0)}) == 3


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    u = Addresses(key_of("corpus", 0), torch.arange(1000), torch.zeros(1000, dtype=torch.int64)).uniforms(100)
    assert u.dtype == torch.float64
    assert 0.0 <= float(u.min()) < 1e-3
    assert 1.0 - 1e-3 < float(u.max()) < 1.0
    # 1e5 numbers: standard error of the mean 9e-4, of each decile's share 9.5e-4
    assert abs(float(u.mean()) - 0.5) < 4e-3
    assert (torch.histc(u, 10, 0.0, 1.0) / u.numel() - 0.1).abs().max() < 4e-3
