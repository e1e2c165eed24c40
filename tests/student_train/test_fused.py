"""The fused kernels, interpreted, against plain torch: values, gradients, and the whole cell against its step."""

import numpy as np
import pytest
import torch
from interpreter import interpreted_triton

from student_train.cells import ltc_ncp
from student_train.cells.fused import fused_states, list_fans
from student_train.cells.ltc_ncp import LtcNcp
from student_train.config import CellConfig
from student_train.kernels.liquid_layers import Neurons, Sigmoids, padded, reference


@pytest.fixture
def kernels():
    return interpreted_triton("student_train.kernels.liquid_layers.triton")


def lively(units=29, inputs=5, dtype=torch.float64, **settings):
    torch.manual_seed(3)
    cell = LtcNcp(inputs, CellConfig(units=units, motor=7, **settings)).to(dtype)
    with torch.no_grad():
        cell.raw_capacitance.uniform_(-1.0, 3.0)
        cell.recurrent.raw_weight.uniform_(-1.0, 1.0)
        cell.start.uniform_(-0.5, 0.5)
    return cell


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("T", [1, 20])
def test_values_and_all_gradients_of_the_fused_cell_are_those_of_the_reference(kernels, T, segments):
    cell = lively()
    x = torch.randn(2, T, 5, dtype=torch.float64, requires_grad=True)
    start = (torch.rand(2, 29, dtype=torch.float64) - 0.5).requires_grad_()
    keep = torch.rand(2, T) > 0.2 if segments else None
    inputs = [x, start, *cell.parameters()]
    ours = torch.cat(fused_states(cell, x, start, keep, kernels), dim=-1)
    law = torch.cat(fused_states(cell, x, start, keep, reference), dim=-1)
    assert (ours - law).abs().max() <= 1e-13
    weights = torch.randn_like(law)
    for own in (slice(None), slice(22, None)):  # all states; the motor states alone, as in training
        got = torch.autograd.grad((ours * weights)[..., own].sum(), inputs, allow_unused=True, retain_graph=True)
        expected = torch.autograd.grad((law * weights)[..., own].sum(), inputs, allow_unused=True, retain_graph=True)
        for a, b in zip(got, expected, strict=True):
            b = torch.zeros(1, dtype=torch.float64) if b is None else b
            a = torch.zeros(1, dtype=torch.float64) if a is None else a
            assert (a - b).abs().max() <= 1e-11 * max(1.0, float(b.abs().max()))


def test_the_fused_cell_equals_its_step_also_in_pieces(kernels, monkeypatch):
    monkeypatch.setattr(ltc_ncp, "triton_runs", lambda _: True)
    cell = lively()
    assert cell.path(torch.zeros(1)) == "fused"
    x, state, outs = torch.randn(1, 19, 5, dtype=torch.float64), cell.start.expand(1, -1), []
    for t in range(19):
        out, state = cell.step(x[:, t], state)
        outs.append(out)
    whole, end = cell(x)
    assert (whole - torch.stack(outs, dim=1)).abs().max() <= 1e-12
    assert (end - state).abs().max() <= 1e-12
    first, middle = cell(x[:, :13])
    second, end2 = cell(x[:, 13:], middle)
    assert (torch.cat([first, second], dim=1) - whole).abs().max() <= 1e-12
    assert (end2 - state).abs().max() <= 1e-12


@torch.no_grad()
def test_no_token_reaches_an_earlier_state_by_one_bit(kernels):
    cell = lively(dtype=torch.float32)
    x = torch.randn(1, 70, 5)
    before = torch.cat(fused_states(cell, x, None, None, kernels), dim=-1)
    x[:, 40] = 1e4
    after = torch.cat(fused_states(cell, x, None, None, kernels), dim=-1)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40], after[:, 40])


def test_every_column_of_the_activations_is_written(kernels, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape, **k: x.new_full(shape, float("nan"), **k))
    neurons = Neurons(*torch.rand(4, 11).add(0.5))
    sums = torch.full((2, 40, 32), float("nan"))
    sums[..., :11], sums[..., 16:27] = torch.randn(2, 40, 11), torch.rand(2, 40, 11)
    v, s = kernels.leaky_layer(sums, neurons, torch.zeros(2, 11), None, Sigmoids(torch.ones(11), torch.zeros(11)))
    assert padded(11) == 16 == s.shape[-1]
    assert torch.isfinite(v).all()
    assert not s[..., 11:].any()
    torch.testing.assert_close(s[..., :11], torch.sigmoid(v), rtol=1e-5, atol=1e-6)


def test_fans_list_each_synapse_once_and_crowded_wirings_have_none():
    edges = np.random.default_rng(0).random((9, 9)) < 0.2
    fans = list_fans(edges)
    found = {(int(fans.into[k, t]), int(t)) for k, t in fans.into_real.nonzero()}
    assert found == {(int(s), int(t)) for s, t in np.argwhere(edges)}
    assert list_fans(np.ones((20, 20), bool)) is None


def test_without_a_gpu_or_with_other_settings_the_cell_is_layered(monkeypatch):
    assert lively().path(torch.zeros(1)) == "layered"
    monkeypatch.setattr(ltc_ncp, "triton_runs", lambda _: True)
    for settings in ({"unfolds": 2}, {"synapses": "per_edge"}):
        assert lively(**settings).path(torch.zeros(1)) == "layered"
