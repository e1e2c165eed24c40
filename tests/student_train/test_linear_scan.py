"""The loop over time is the oracle of the scan; finite differences are the oracle of its adjoint."""

import pytest
import torch
from interpreter import interpreted_triton

from student_train.kernels.linear_scan import chunked, linear_scan, reversed_scan
from student_train.kernels.linear_scan import loop as loop_twin


def loop(a, b, initial):
    v, out = initial, []
    for t in range(a.shape[1]):
        v = a[:, t] * v + b[:, t]
        out.append(v)
    return torch.stack(out, dim=1)


def problem(T, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(2, T, 3, generator=g, dtype=dtype)
    return a, torch.randn(2, T, 3, generator=g, dtype=dtype), torch.randn(2, 3, generator=g, dtype=dtype)


@pytest.mark.parametrize("T", [1, 2, 3, 5, 16, 37, 128, 131])
def test_scan_equals_the_loop_for_every_length(T):
    a, b, initial = problem(T)
    torch.testing.assert_close(linear_scan(a, b, initial), loop(a, b, initial), rtol=0, atol=1e-14)


@pytest.mark.parametrize("T", [1, 2, 7, 13])
def test_gradients_of_the_scan_equal_finite_differences(T):
    a, b, initial = (x.requires_grad_() for x in problem(T))
    assert torch.autograd.gradcheck(linear_scan, (a, b, initial))


def test_reversed_scan_is_the_transpose_of_the_scan():
    a, b, _ = problem(29)
    g = torch.randn_like(b)
    forward = (linear_scan(a, b) * g).sum()
    torch.testing.assert_close((b * reversed_scan(a, g)).sum(), forward, rtol=1e-12, atol=0)


@pytest.mark.parametrize("T", [50, 200])
def test_changing_a_step_changes_no_earlier_value_by_one_bit(T):
    a, b, initial = problem(T, torch.float32)
    before = linear_scan(a, b, initial)
    a[:, T // 2], b[:, T // 2] = 0.123, 1e30
    after = linear_scan(a, b, initial)
    assert torch.equal(before[:, : T // 2], after[:, : T // 2])
    assert not torch.equal(before[:, T // 2], after[:, T // 2])


def test_a_closed_gate_forgets_even_huge_pasts_and_slow_decay_stays_exact():
    a, b, _ = problem(64, torch.float32)
    a[:, 20] = 0
    huge = linear_scan(a, b, torch.full((2, 3), 1e30))
    small = linear_scan(a, b, torch.zeros(2, 3))
    assert torch.equal(huge[:, 20:], small[:, 20:])
    decay = torch.full((1, 4096, 1), 1 - 2**-12, dtype=torch.float32)
    v = linear_scan(decay, torch.zeros_like(decay), torch.ones(1, 1))
    exact = (1 - 2**-12) ** torch.arange(1, 4097, dtype=torch.float64)
    torch.testing.assert_close(v[0, :, 0].double(), exact, rtol=2e-4, atol=0)


@pytest.mark.parametrize("T", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("backwards", [False, True])
def test_all_twins_agree(T, backwards):
    a, b, _ = problem(T)
    expected = loop_twin(a, b, backwards=backwards)
    torch.testing.assert_close(chunked(a, b, backwards=backwards), expected, rtol=0, atol=1e-13)
    tiled = interpreted_triton("student_train.kernels.linear_scan.triton").tiled
    torch.testing.assert_close(tiled(a, b, backwards=backwards), expected, rtol=0, atol=1e-13)


def test_the_triton_twin_is_causal_bit_by_bit_and_covers_odd_widths():
    tiled = interpreted_triton("student_train.kernels.linear_scan.triton").tiled
    a, b = torch.rand(2, 90, 37), torch.randn(2, 90, 37)
    before = tiled(a, b)
    torch.testing.assert_close(before, loop_twin(a, b), rtol=0, atol=1e-5)
    a[:, 50], b[:, 50] = 0.123, 1e30
    after = tiled(a, b)
    assert torch.equal(before[:, :50], after[:, :50])
    assert not torch.equal(before[:, 50], after[:, 50])
