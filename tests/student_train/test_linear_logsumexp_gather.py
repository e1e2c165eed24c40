"""The chunked primitive against the dense one, values and gradients, in float64 unless said otherwise."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from student_train.kernels.linear_logsumexp_gather import chunked, dense, linear_logsumexp_gather

N, D, V, REAL, S = 7, 5, 23, 19, 6


def problem(dtype=torch.float64, seed=0):
    """hidden, weight, bias, ids with repeats, mask with an empty row and one that points at a dead row."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(0, REAL, (N, S), generator=g)
    ids[2, :4] = 3
    mask = torch.rand(N, S, generator=g) > 0.3
    mask[2, :4] = True
    mask[4] = False
    ids[0, 1], mask[0, 1] = V - 1, False
    return hidden, weight, bias, ids, mask


def gradients(op, temperatures, *, dtype=torch.float64, use_bias=True, **options):
    """Values and gradients of a random contraction of both outputs."""
    hidden, weight, bias, ids, mask = problem(dtype)
    picked, logsumexp = op(
        hidden,
        weight,
        ids,
        mask=mask,
        num_real=REAL,
        bias=bias if use_bias else None,
        temperatures=temperatures,
        **options,
    )
    g = torch.Generator().manual_seed(1)
    upstream_p = torch.randn(picked.shape, generator=g, dtype=torch.float64).to(picked.dtype)
    upstream_l = torch.randn(logsumexp.shape, generator=g, dtype=torch.float64).to(picked.dtype)
    ((picked * upstream_p).sum() + (logsumexp * upstream_l).sum()).backward()
    return picked, logsumexp, hidden.grad, weight.grad, bias.grad


@pytest.mark.parametrize("tile", [(1, V), (2, 5), (3, REAL), (7, 4), (100, 8), (3, 1), (512, 1024)])
@pytest.mark.parametrize("temperatures", [(1.0,), (2.0,), (1.0, 2.0, 0.5)])
def test_chunked_equals_dense_whatever_the_tile(tile, temperatures):
    ours = gradients(chunked, temperatures, tile=tile)
    law = gradients(dense, temperatures)
    for name, a, b in zip(("picked", "logsumexp", "hidden", "weight", "bias"), ours, law, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_chunked_equals_dense_without_bias():
    ours, law = (gradients(op, (1.0,), use_bias=False) for op in (chunked, dense))
    for a, b in zip(ours[:4], law[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    hidden, weight, bias, ids, mask = problem()
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked(h, w, ids, mask=mask, num_real=REAL, bias=b, temperatures=(1.0, 2.0), tile=(3, 7)),
        (hidden, weight, bias),
    )


def test_values_follow_the_definition_written_with_loops():
    hidden, weight, bias, ids, mask = (x.detach() for x in problem())
    picked, logsumexp = linear_logsumexp_gather(
        hidden, weight, ids, mask=mask, num_real=REAL, bias=bias, temperatures=(1.0, 2.0)
    )
    for n in range(N):
        logits = [(hidden[n] @ weight[v] + bias[v]).item() for v in range(REAL)]
        for s in range(S):
            expected = logits[int(ids[n, s])] if mask[n, s] else 0.0
            assert float(picked[n, s]) == pytest.approx(expected, abs=1e-12)
        for c, t in enumerate((1.0, 2.0)):
            total = sum(torch.tensor(x / t, dtype=torch.float64).exp().item() for x in logits)
            assert float(logsumexp[n, c]) == pytest.approx(torch.tensor(total).log().item(), rel=1e-6)


def test_dead_rows_take_no_part_and_get_no_gradient():
    hidden, weight, bias, ids, mask = problem()
    with torch.no_grad():
        weight[REAL:] = 1e6
    picked, logsumexp = chunked(hidden, weight, ids, mask=mask, num_real=REAL, bias=bias)
    (picked.sum() + logsumexp.sum()).backward()
    assert logsumexp.max() < 1e3
    assert weight.grad[REAL:].abs().max() == 0
    assert bias.grad[REAL:].abs().max() == 0


def test_repeated_ids_add_their_gradients():
    hidden, weight, _, _, _ = problem()
    repeated, _ = chunked(hidden, weight, torch.full((N, 3), 4), num_real=REAL)
    repeated.sum().backward()
    expected = 3 * hidden.detach().sum(0)
    torch.testing.assert_close(weight.grad[4], expected)


def test_bfloat16_inputs_are_accumulated_in_float32():
    ours = gradients(chunked, (1.0,), dtype=torch.bfloat16, tile=(2, 6))
    law = gradients(dense, (1.0,), dtype=torch.bfloat16)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    torch.testing.assert_close(ours[0], law[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1], law[1], rtol=1e-6, atol=1e-6)
    for a, b in zip(ours[2:], law[2:], strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-7)


def test_no_rows_give_zero_gradients():
    _, weight, bias, _, _ = problem()
    hidden = torch.zeros(0, D, dtype=torch.float64, requires_grad=True)
    picked, logsumexp = chunked(hidden, weight, torch.zeros(0, S, dtype=torch.int64), num_real=REAL, bias=bias)
    (picked.sum() + logsumexp.sum()).backward()
    assert weight.grad.abs().max() == 0
    assert hidden.grad.shape == (0, D)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_of_positions_times_vocabulary_is_ever_made():
    n, v, d = 512, 300, 4
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    with Largest() as largest:
        picked, logsumexp = chunked(hidden, weight, torch.randint(0, v, (n, 3)), tile=(8, 64))
        (picked.sum() + logsumexp.sum()).backward()
    assert largest.elements < n * v / 50
