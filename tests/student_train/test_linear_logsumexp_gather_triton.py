"""The Triton twin against the dense one, in Triton's interpreter on a CPU; skipped where triton is not installed.

The interpreter cannot add bfloat16 atomically, so the narrow dtype here is float16; bfloat16 was checked on a GPU.
"""

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed; it comes with CUDA builds of torch")

from student_train.kernels.linear_logsumexp_gather import dense
from student_train.kernels.linear_logsumexp_gather.triton import Tile, fused

N, D, V, REAL, S = 37, 24, 150, 141, 5
TILE = Tile(16, 16, 4, 2)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for CPUs")


def gradients(op, dtype, temperatures, *, use_bias=True, **options):
    """Values and gradients of a random contraction; repeated ids, an empty row, a masked id of a dead row."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=g).to(dtype) for shape in ((N, D), (V, D), (V,)))
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    ids = torch.randint(0, REAL, (N, S), generator=g)
    mask = torch.rand(N, S, generator=g) > 0.3
    ids[3, :3], mask[3, :3], mask[4] = 7, True, False
    ids[0, 1], mask[0, 1] = V - 1, False
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
    upstream = torch.randn(picked.shape, generator=g), torch.randn(logsumexp.shape, generator=g)
    ((picked * upstream[0]).sum() + (logsumexp * upstream[1]).sum()).backward()
    return picked, logsumexp, *(x.grad for x in leaves[: 2 + use_bias])


@pytest.mark.parametrize("slice_columns", [None, 48])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0)])
def test_fused_equals_dense(temperatures, use_bias, slice_columns):
    ours = gradients(fused, torch.float32, temperatures, use_bias=use_bias, tile=TILE, slice_columns=slice_columns)
    law = gradients(dense, torch.float32, temperatures, use_bias=use_bias)
    for name, a, b in zip(("picked", "logsumexp", "hidden", "weight", "bias"), ours, law, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_narrow_inputs_are_accumulated_in_float32():
    ours = gradients(fused, torch.float16, (1.0,), tile=TILE, slice_columns=48)
    law = gradients(dense, torch.float16, (1.0,))
    assert ours[0].dtype == ours[1].dtype == torch.float32
    for a, b in zip(ours[:2], law[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours[2:], law[2:], strict=True):
        assert a.dtype == torch.float16
        assert float((a - b).float().norm() / b.float().norm()) < 2e-3


def test_dead_rows_get_no_gradient():
    grad_weight, grad_bias = gradients(fused, torch.float32, (1.0,), tile=TILE, slice_columns=48)[3:]
    assert grad_weight[REAL:].abs().max() == 0
    assert grad_bias[REAL:].abs().max() == 0


def test_no_rows_give_zero_gradients():
    weight = torch.randn(V, D, requires_grad=True)
    hidden = torch.zeros(0, D, requires_grad=True)
    picked, logsumexp = fused(hidden, weight, torch.zeros(0, S, dtype=torch.int64), num_real=REAL)
    (picked.sum() + logsumexp.sum()).backward()
    assert weight.grad.abs().max() == 0
    assert hidden.grad.shape == (0, D)
